"""Without keys: requests as browsers send them for foreign web pages, also with rebound host names."""

from collections.abc import Iterator

from tools.attacks.raw import Header, Request, all_of, send
from tools.attacks.routes import is_open, routes
from tools.attacks.target import Finding, Target

EVIL = "rebound.example"
PROBES = ("/health", "/health/live", "/health/ready")


async def pages(target: Target, finding: Finding) -> None:
    found = [each for each in await routes(target) if each.path not in PROBES]
    requests = [
        Request(route.method, route.filled(), headers, b"{}" if route.has_body else b"", host)
        for route in found
        for host, headers in (*_names(target), *(_sites(target) if not is_open(route.path) else ()))
    ][:: target.every]
    for request, answer in zip(requests, await all_of(send(target, each) for each in requests), strict=True):
        finding.check(answer.status in (0, 400, 403), str(request), answer)
    finding.notes["routes"] = len(found)


def _names(target: Target) -> Iterator[tuple[str, list[Header]]]:
    port = target.port
    for host in (
        *(EVIL, f"{EVIL}:{port}", f"localhost.{EVIL}:{port}", f"127.0.0.1.{EVIL}", f"{EVIL}.", f"{EVIL}:80"),
        *(f"localhost@{EVIL}", f"localhost:{port}@{EVIL}", f"{EVIL}#localhost", f"{EVIL}/localhost", "notlocalhost"),
        *("local host", "xn--lcalhost-54a", f"localhost,{EVIL}", "[::1", "2130706433", "0x7f.1", "127.1", "*"),
    ):
        yield host, []
    yield EVIL, [("X-Forwarded-Host", "localhost"), ("Forwarded", "host=localhost")]
    yield f"{EVIL}:{port}", [("Origin", f"http://{EVIL}:{port}"), ("Sec-Fetch-Site", "same-origin")]


def _sites(target: Target) -> Iterator[tuple[str, list[Header]]]:
    host = f"{target.host}:{target.port}"
    for headers in (
        *([("Origin", each)] for each in (f"https://{EVIL}", "null", "http://localhost.evil", f"{EVIL}", "")),
        *([("Origin", each)] for each in (f"http://{host}.{EVIL}", f"http://{host}@{EVIL}", f"http://{EVIL}#{host}")),
        *([("Origin", f"http://{target.host}:{port}")] for port in (1, target.port ^ 1)),
        *([("Sec-Fetch-Site", each)] for each in ("cross-site", "same-site", "CROSS-SITE", "anything")),
        [("Origin", f"https://{EVIL}"), ("Sec-Fetch-Site", "same-origin")],
        [("Origin", f"http://{host}"), ("Sec-Fetch-Site", "cross-site")],
        [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")],
        [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors"), ("Sec-Fetch-Dest", "image")],
        [("Origin", f"https://{EVIL}"), ("Referer", f"http://{host}/"), ("Content-Type", "text/plain")],
    ):
        yield "", headers
