"""Requests without a valid key to every route, in every form that might be accepted."""

import base64
import hashlib
import re
from collections.abc import Iterator
from itertools import product
from urllib.parse import quote

from tools.attacks.raw import Answer, Request, all_of, send
from tools.attacks.routes import Route, is_open, routes
from tools.attacks.target import Finding, Target

REFUSALS = (400, 401, 404, 405, 426, 431, 505)
MISSING = "resp_00000000000000000000000000000000"
OTHER_METHODS = ("HEAD", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "get", "PROPFIND", "OPTIONS ", "X" * 40)
STATIC = (
    *("/static/../v1/models", "/static/%2e%2e/v1/models", "/static/..%2fv1/models", "/static/..%5cv1/models"),
    *("/static/../common/settings.py", "/static/%2e%2e/main.py", "/static/..%2f..%2f..%2f.env", "/static//etc/passwd"),
    *("/static/%00", "/static/....//main.py", "/static/%252e%252e/main.py", "/static/~root", "/static/.."),
)


async def authorisation(target: Target, finding: Finding) -> None:
    found = [each for each in await routes(target) if not is_open(each.path)]
    token = await _token(target)
    ways = [*_with_headers(target, found, token), *_with_methods(found), *_with_paths(target, found)]
    requests = ways[:: target.every]
    for request, answer in zip(requests, await all_of(send(target, each) for each in requests), strict=True):
        finding.check(_is_refused(request, answer), str(request), answer)
    await _tampered_tokens(target, finding, token)
    await _existing_or_missing(target, finding)
    finding.notes["routes"] = len(found)


def _is_refused(request: Request, answer: Answer) -> bool:
    if request.method == "OPTIONS ":  # OPTIONS is public
        return not answer.body or answer.status in REFUSALS
    return answer.status in (0, *REFUSALS)


def _with_headers(target: Target, found: list[Route], token: str) -> Iterator[Request]:
    for route, headers in product(found, _credentials(target, token)):
        yield Request(route.method, route.filled(), headers, _body(route))
    for route, query in product(found, _queries(target, token)):
        if route.path != "/chat/stream" or not query.startswith("token="):
            yield Request(route.method, f"{route.filled()}?{query}", (), _body(route))


def _body(route: Route) -> bytes:
    return b"{}" if route.has_body else b""


def _credentials(target: Target, token: str) -> list[list[tuple[str, str]]]:
    key = target.alpha
    digest = hashlib.sha256(key.encode()).hexdigest()
    basic = base64.b64encode(f":{key}".encode()).decode()
    bearers = ("", " ", "wrong", key[:-1], key + "x", key.swapcase(), f'"{key}"', f"{key},", digest, f"sha256:{digest}")
    schemes = (key, f"Basic {basic}", f"Token {key}", f"Bearer:{key}", f"Bearer={key}", f"Digest {key}", "Bearer\tx")
    more = (f"key_{digest[:24]}", "local", token, "null", "undefined", "*", "' OR 1=1 --")
    return [
        [],
        *([("Authorization", f"Bearer {each}")] for each in (*bearers, *more)),
        *([("Authorization", each)] for each in ("", *schemes)),
        *([("X-API-Key", each)] for each in ("", " ", "wrong", key[:-1], digest, f"sha256:{digest}", token)),
        [("Authorization", "Bearer wrong"), ("X-API-Key", "wrong")],
        [("Cookie", f"api_key={key}; token={token}; Authorization=Bearer {key}")],
        [("Proxy-Authorization", f"Bearer {key}")],
        [("X-Forwarded-For", "127.0.0.1"), ("X-Real-IP", "127.0.0.1"), ("Forwarded", "for=127.0.0.1")],
        [("X-Original-URL", "/health"), ("X-Rewrite-URL", "/health"), ("X-Forwarded-Prefix", "/static")],
        [("X-HTTP-Method-Override", "OPTIONS"), ("X-Method-Override", "OPTIONS"), ("X-HTTP-Method", "HEAD")],
        [
            ("X-Owner", f"key_{digest[:24]}"),
            ("X-User", "root"),
            ("X-Remote-User", "alpha"),
            ("OpenAI-Organization", "x"),
        ],
    ]


def _queries(target: Target, token: str) -> list[str]:
    key = quote(target.alpha)
    return [
        *(f"{name}={key}" for name in ("key", "api_key", "api-key", "access_token", "token", "X-API-Key")),
        *(f"{name}={quote(token)}" for name in ("token", "access_token")),
        f"Authorization=Bearer%20{key}",
    ]


def _with_methods(found: list[Route]) -> Iterator[Request]:
    for path, method in product(dict.fromkeys(route.filled() for route in found), OTHER_METHODS):
        yield Request(method, path)


def _with_paths(target: Target, found: list[Route]) -> Iterator[Request]:
    for route in found:
        for path in _disguised(target, route.filled()):
            yield Request(route.method, path, (), _body(route))
    yield from (Request("GET", path) for path in STATIC)


def _disguised(target: Target, path: str) -> list[str]:
    return [
        *(
            f"/{path}",
            f"/.{path}",
            f"/%2e{path}",
            f"{path}/",
            f"{path}/.",
            f"{path}%2f",
            f"{path}%00",
            f"{path};/health",
        ),
        *(f"/health/..{path}", f"/health/%2e%2e{path}", f"/health%2f..{path}", f"/static/..{path}", f"/static{path}"),
        *(path.upper(), path.title(), f"{path}?/health", f"{path}#/health", f"{path}%3f", f"{path}%20", f"{path}.json"),
        *(f"{target.url}{path}", f"http://localhost{path}", f"//health{path}", f"/%68ealth/../{path}", path[1:]),
        path.replace("/", "%2f"),
        path.replace("/", "\\"),
        "/" + "".join(f"%{ord(letter):02x}" if letter.isalpha() else letter for letter in path[1:]),
    ]


async def _token(target: Target) -> str:
    async with target.client(target.alpha) as client, client.post("/chat/token") as answer:
        token: str = (await answer.json())["token"]
        return token


async def _tampered_tokens(target: Target, finding: Finding, token: str) -> None:
    owner, time, signature = token.split(".")
    other = "key_" + hashlib.sha256(target.beta.encode()).hexdigest()[:24]
    for each in (
        *("", ".", "..", f"{owner}", f"{owner}.{time}", f"{owner}.{time}.", f"{owner}.{time}.{signature[:-1]}"),
        *(f"{owner}.z{time[1:]}.{signature}", f"{owner}.1.{signature}", f"{other}.{time}.{signature}"),
        *(f"{owner}.{time}.{signature[::-1]}", f"{owner}.{time}AAAA.{signature}", f"local.{time}."),
        *(f"{owner}.{time}.{signature}x", f"{owner}.-1.{signature}", f"{owner}.1e99.{signature}", "%00.9.9"),
    ):
        path = f"/chat/stream?prompt=x&max_tokens=1&token={each}"
        answer = await send(target, Request("GET", path))
        finding.check(answer.status == 401, f"GET {path}", answer)


async def _existing_or_missing(target: Target, finding: Finding) -> None:
    """Without a key, existing and missing objects must get the same answer."""
    async with target.client(target.alpha) as client, client.post("/v1/conversations", json={}) as made:
        id = (await made.json())["id"]
    missing = "conv_" + "0" * (len(id) - 5)
    for method, tail in product(("GET", "POST", "DELETE", "HEAD"), ("", "/items", "/items/x")):
        seen = [await send(target, Request(method, f"/v1/conversations/{each}{tail}")) for each in (id, missing)]
        finding.check(_shape(seen[0]) == _shape(seen[1]), f"{method} /v1/conversations/…{tail} tells what is there")
    async with target.client(target.alpha) as client, client.delete(f"/v1/conversations/{id}"):
        pass


def _shape(answer: Answer) -> tuple[int, list[str], bytes]:
    return answer.status, sorted(answer.headers), re.sub(rb"(conv|req)_\w+", b"", answer.body)
