"""What is fetched, from where, and what never is."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import httpx2
import pytest

from services.errors import InvalidRequest
from services.fetch_service import Fetcher, is_public

PUBLIC = "93.184.216.34"
OTHER = "2606:2800:220:1::1"
NAMES = {"images.example": [PUBLIC], "other.example": [OTHER], "inside.example": ["10.0.0.1"]}


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.1", "172.16.0.1", "192.168.1.1", "127.0.0.1", "0.0.0.0", "169.254.169.254", "100.64.0.1"),
        *("224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.0.8", "192.88.99.1", "198.18.0.1", "203.0.113.1"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1", "::ffff:10.0.0.1"),
        *("::ffff:127.0.0.1", "::10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "2001:0:1::1", "no address"),
    ],
)
def test_all_others(address: str) -> None:
    assert not is_public(address)


def ok(data: bytes) -> httpx2.Response:
    return httpx2.Response(200, stream=httpx2.ByteStream(data))


class Server(httpx2.AsyncBaseTransport):
    """Answers by the host that was asked for, and remembers where the connection went."""

    def __init__(self, **answers: httpx2.Response | Callable[[], httpx2.Response]) -> None:
        self.answers = {"images.example": ok(b"image"), **answers}
        self.requests: list[httpx2.Request] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self.answers[request.headers["host"]]
        return answer if isinstance(answer, httpx2.Response) else answer()

    @property
    def addresses(self) -> list[str]:
        return [request.url.host for request in self.requests]


class Names:
    """Says each answer once where there are several, the last one for ever."""

    def __init__(self, **names: list[list[str]]) -> None:
        self._names = {**{name: [found] for name, found in NAMES.items()}, **names}

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        if host not in self._names:
            raise OSError
        found = self._names[host]
        return found.pop(0) if len(found) > 1 else found[0]


def redirect(where: str) -> httpx2.Response:
    return httpx2.Response(302, headers={"location": where})


def fetcher(
    server: Server, names: Names | None = None, hosts: Sequence[str] = ("*",), timeout_s: float = 20
) -> Fetcher:
    return Fetcher(hosts, max_bytes=10, timeout_s=timeout_s, resolve=names or Names(), transport=server)


async def refusal(fetch: Fetcher, url: str = "http://images.example/a.png") -> str:
    with pytest.raises(InvalidRequest) as refused:
        await fetch.get(url, "the.param")
    assert refused.value.param == "the.param"
    assert "example" not in refused.value.message
    return refused.value.message


async def test_the_connection_goes_to_the_checked_address() -> None:
    server = Server()

    assert await fetcher(server).get("https://images.example/a.png?b=c#d", "p") == b"image"

    (request,) = server.requests
    assert str(request.url) == f"https://{PUBLIC}/a.png?b=c"
    assert request.headers["host"] == request.extensions["sni_hostname"] == "images.example"
    assert request.headers["accept-encoding"] == "identity"


async def test_a_second_answer_of_the_name_server_is_not_asked_for() -> None:
    server, names = Server(), Names(**{"images.example": [[PUBLIC], ["127.0.0.1"]]})

    await fetcher(server, names).get("http://images.example/", "p")

    assert server.addresses == [PUBLIC]


@pytest.mark.parametrize("found", [["127.0.0.1"], [PUBLIC, "10.0.0.1"], ["::ffff:169.254.169.254"], []])
async def test_no_private_address_is_asked(found: list[str]) -> None:
    server = Server()
    assert "no public address" in await refusal(fetcher(server, Names(**{"images.example": [found]})))
    assert server.requests == []


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "2130706433", "0x7f.1", "localhost"])
async def test_real_names_of_this_machine_are_refused(host: str) -> None:
    server = Server()
    fetch = Fetcher(["*"], max_bytes=10, timeout_s=20, transport=server)
    with pytest.raises(InvalidRequest):
        await fetch.get(f"http://{host}/", "p")
    assert server.requests == []


async def test_redirects_are_followed_and_checked_again() -> None:
    answers = {"images.example": redirect("//other.example/b"), "other.example": ok(b"b")}
    server = Server(**answers)
    assert await fetcher(server).get("http://images.example/", "p") == b"b"
    assert server.addresses == [PUBLIC, OTHER]

    server = Server(**{"images.example": redirect("http://inside.example/")})
    assert "no public address" in await refusal(fetcher(server))
    assert server.addresses == [PUBLIC]


@pytest.mark.parametrize(
    "where", ["file:///etc/passwd", "http://images.example:22/", "ftp://other.example/", "http://"]
)
async def test_redirects_to_elsewhere(where: str) -> None:
    await refusal(fetcher(Server(**{"images.example": redirect(where)})))


async def test_endless_redirects() -> None:
    server = Server(**{"images.example": lambda: redirect("/again")})
    assert "too often" in await refusal(fetcher(server))
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "url",
    [
        *("x", "", "ftp://images.example/", "http://", "http://a:b@images.example/", "http://images.example:8080/"),
        *("http://[::1/", "http://images.example\n/", "http://" + "a" * 300 + "/", "http://unknown.example/"),
    ],
)
async def test_other_urls(url: str) -> None:
    await refusal(fetcher(Server()), url)


async def test_only_the_hosts_of_the_settings() -> None:
    fetch = fetcher(Server(), hosts=["Images.Example"])
    assert await fetch.get("http://images.example/", "p") == b"image"
    assert "not among those" in await refusal(fetch, "http://other.example/")


async def test_a_redirect_to_a_host_that_is_not_in_the_settings() -> None:
    server = Server(**{"images.example": redirect("http://other.example/")})
    assert "not among those" in await refusal(fetcher(server, hosts=["images.example"]))


async def test_an_error_is_no_image() -> None:
    assert "status 404" in await refusal(fetcher(Server(**{"images.example": httpx2.Response(404, content=b"no")})))


async def test_a_broken_connection() -> None:
    def broken() -> httpx2.Response:
        raise httpx2.ConnectError("refused")

    assert "does not answer" in await refusal(fetcher(Server(**{"images.example": broken})))


async def test_too_much() -> None:
    async def much() -> AsyncIterator[bytes]:
        while True:
            yield b"12345"

    server = Server(**{"images.example": httpx2.Response(200, content=much())})
    assert "more than 10 bytes" in await refusal(fetcher(server))


async def test_too_slow() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"1"
        await asyncio.Event().wait()

    server = Server(**{"images.example": httpx2.Response(200, content=slow())})
    assert "too long" in await refusal(fetcher(server, timeout_s=0.05))


class Rerouted(httpx2.AsyncHTTPTransport):
    """To a server of this machine, whatever address was asked for."""

    def __init__(self, port: int) -> None:
        super().__init__(trust_env=False)
        self._port = port

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        assert request.url.host == PUBLIC
        request.url = request.url.copy_with(host="127.0.0.1", port=self._port)
        return await super().handle_async_request(request)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nimage", b"image"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nimage\r\n0\r\n\r\n", b"image"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nimage", "does not answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n" + bytes(50), "more than 10 bytes"),
        (b"HTTP/1.1 301 Moved\r\nLocation: http://inside.example/\r\n\r\n", "no public address"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "does not answer"),
        (b"no HTTP", "does not answer"),
        (b"", "does not answer"),
    ],
)
async def test_over_a_real_connection(answer: bytes, found: bytes | str) -> None:
    heads = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        transport = Rerouted(server.sockets[0].getsockname()[1])
        fetch = Fetcher(["*"], max_bytes=10, timeout_s=20, resolve=Names(), transport=transport)
        if isinstance(found, bytes):
            assert await fetch.get("http://images.example/a.png?b", "p") == found
        else:
            assert found in await refusal(fetch)

    assert heads[0].startswith(b"GET /a.png")
    assert b"\r\nHost: images.example\r\n" in heads[0]
