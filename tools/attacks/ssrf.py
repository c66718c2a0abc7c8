"""Image URLs that lead to this machine or its network, none of which may be requested."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import cycle
from typing import Any

import httpx2
from aiohttp import ClientSession

from services.errors import InvalidRequest
from services.fetch_service import Fetcher
from tools.attacks.target import Finding, Target

PUBLIC = "93.184.216.34"  # not contacted: the transport is a fake
LOOPBACK = (
    *("127.0.0.1", "127.1", "127.0.1", "127.255.255.254", "2130706433", "0x7f000001", "0x7f.1", "0x7F.0.0.0x1"),
    *("0177.0.0.1", "017700000001", "00000177.1", "localhost", "LOCALHOST", "localhost.", "0", "0.0.0.0", "0x0"),
    *("[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[::ffff:0:0]"),
    *("[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[2001::7f00:1]", "[::1%25lo]", "%31%32%37.0.0.1", "①②⑦.⓪.⓪.①"),
    *("127。0。0。1", "１２７.0.0.1", "ｌocalhost", "lo%63alhost", "127.0.0.1.", "[::ffff:0:127.0.0.1]"),
)
PRIVATE = (
    *("10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.254", "192.168.0.1", "192.168.1.1", "100.64.0.1"),
    *("169.254.169.254", "169.254.170.2", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "[::ffff:a9fe:a9fe]"),
    *("[fd00:ec2::254]", "[fe80::1]", "[fe80::1%25eth0]", "[fc00::1]", "[fec0::1]", "[ff02::1]", "[2001:db8::1]"),
    *("192.0.0.192", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1"),
    *("255.255.255.255", "[64:ff9b:1::a00:1]", "[100::1]", "[3fff::1]", "[2002:a9fe:a9fe::]", "[5f00::1]"),
)
OTHERS = (
    *(
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "ftp://127.0.0.1/",
        "gopher://127.0.0.1:{port}/_GET",
        "unix:/run/x",
    ),
    *(
        "dict://127.0.0.1:{port}/",
        "ldap://127.0.0.1/",
        "ws://127.0.0.1:{port}/",
        "javascript:fetch('/')",
        "blob:http://x",
    ),
    *(
        "//127.0.0.1/",
        "http:127.0.0.1",
        "http:/127.0.0.1",
        "http:///127.0.0.1",
        "http:\\\\127.0.0.1",
        "127.0.0.1/a.png",
    ),
    *(
        "http://user@127.0.0.1/",
        "http://images.example@127.0.0.1/",
        "http://127.0.0.1\\@images.example/",
        "HTTP://127.0.0.1",
    ),
    *(
        "http://127.0.0.1#@images.example/",
        "http://127.0.0.1?@images.example/",
        " http://127.0.0.1",
        "http://127.0.0.1\t/",
    ),
    *(
        "http://127.0.0.1:{port}@127.0.0.1/",
        "http://127.0.0.1:080/",
        "http://127.0.0.1:00080/",
        "https://127.0.0.1:443/",
    ),
    *("http://[::1]:{port}/", "http://127.0.0.1:{port}\r\nHost: x/", "http://127.0.0.1%00.example/", "http://", ""),
)
REQUESTED = (
    "does not answer",
    "answers with",
    "takes too long",
    "more than",
    "redirected",
)  # errors after a request was sent


class Listener:
    """Counts connections to its own port and, if permitted, to the ports of the schemes."""

    def __init__(self) -> None:
        self.count = 0
        self.port = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for port in (0, 80, 443):
                with suppress(OSError):
                    server = await asyncio.start_server(self._accept, "127.0.0.1", port)
                    await stack.enter_async_context(server)
                    self.port = self.port or server.sockets[0].getsockname()[1]
            yield

    async def _accept(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        writer.close()


async def ssrf(target: Target, finding: Finding) -> None:
    listener = Listener()
    async with listener.listening(), target.client(target.alpha if target.keys else None) as client:
        for ask, url in list(zip(cycle(ROUTES), urls(listener.port), strict=False))[:: target.every]:
            before = listener.count
            status, text = await ask(client, url, target.seeing_model or "default")
            is_refused = status == 400 and not any(each in text for each in REQUESTED)
            finding.check(is_refused and listener.count == before, f"image at {url!r}", f"{status} {text}")
            name = "refused by the fetcher" if "cannot be fetched" in text else "refused before it"
            finding.notes[name] = finding.notes.get(name, 0) + 1
    await _names_and_redirects(finding)


def urls(port: int) -> Iterator[str]:
    for host in (*LOOPBACK, *PRIVATE, socket.gethostname()):
        yield f"http://{host}/a.png"
    for host in LOOPBACK:
        yield f"http://{host}:{port}/a.png"
        yield f"https://{host}/a.png"
    yield from (each.replace("{port}", str(port)) for each in OTHERS)


async def _chat(client: ClientSession, url: str, model: str) -> tuple[int, str]:
    content = [{"type": "image_url", "image_url": {"url": url}}]
    return await _post(client, "/v1/chat/completions", model, messages=[{"role": "user", "content": content}])


async def _response(client: ClientSession, url: str, model: str) -> tuple[int, str]:
    content = [{"type": "input_image", "image_url": url}]
    return await _post(client, "/v1/responses", model, input=[{"role": "user", "content": content}], store=False)


async def _message(client: ClientSession, url: str, model: str) -> tuple[int, str]:
    content = [{"type": "image", "source": {"type": "url", "url": url}}]
    return await _post(client, "/v1/messages", model, max_tokens=1, messages=[{"role": "user", "content": content}])


ROUTES = (_chat, _response, _message)


async def _post(client: ClientSession, path: str, model: str, **body: Any) -> tuple[int, str]:
    async with client.post(path, json={"model": model, **body}) as answer:
        return answer.status, await answer.text()


async def _names_and_redirects(finding: Finding) -> None:
    """Names that resolve to internal addresses, also on a second lookup, and redirects to them, with the server's
    fetcher and a fake resolver."""
    inward = ("127.0.0.1", "::1", "10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "fe80::1", "100.64.0.1", "0.0.0.0")
    for address in inward:
        for answers in ([[address]], [[PUBLIC, address]], [[address, PUBLIC]], [[PUBLIC], [address]]):
            await _fetch(finding, f"a name that is {answers}", answers, "http://images.example/again")
    for url in (
        "http://127.0.0.1/",
        "http://[::1]/",
        "//127.0.0.1/",
        "http://localhost/",
        "http://2130706433/",
        "file:///",
    ):
        await _fetch(finding, f"a redirect to {url}", [[PUBLIC]], url)


async def _fetch(finding: Finding, what: str, answers: list[list[str]], location: str) -> None:
    transport, left = _Redirecting(location), [*answers]

    async def resolve(host: str, port: int) -> Sequence[str]:
        if host != "images.example":  # resolved without a name server
            found = await asyncio.get_running_loop().getaddrinfo(host, port)
            return [str(address[0]) for *_, address in found]
        return left.pop(0) if len(left) > 1 else left[0]

    fetcher = Fetcher(["*"], max_bytes=1024, timeout_s=10, resolve=resolve, transport=transport)
    with suppress(InvalidRequest):
        await fetcher.get("http://images.example/a.png", "url")
    finding.check(set(transport.requested) <= {PUBLIC}, what, transport.requested)


class _Redirecting(httpx2.AsyncBaseTransport):
    def __init__(self, location: str) -> None:
        self._location = location
        self.requested: list[str] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requested.append(request.url.host)
        return httpx2.Response(302, headers={"location": self._location})
