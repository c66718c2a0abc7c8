"""When a connection is late: timeouts count only while the server waits for the client."""

import asyncio

import h11
import pytest

from app.common.connection import Connection, Deadlines

DEADLINES = Deadlines(headers=10, body=20, body_rate=500, send=60)
HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
ANSWER = h11.Response(status_code=200, headers=[("Content-Length", "0")])


class Server(asyncio.Protocol):
    """Like uvicorn's protocol: h11 parses the input, and the test triggers answers."""

    def __init__(self) -> None:
        self.conn = h11.Connection(h11.SERVER)

    def data_received(self, data: bytes) -> None:
        self.conn.receive_data(data)
        self._read()

    def answer(self) -> None:
        self.conn.send(ANSWER)
        self.conn.send(h11.EndOfMessage())
        self.conn.start_next_cycle()
        self._read()

    def _read(self) -> None:
        while self.conn.next_event() not in (h11.NEED_DATA, h11.PAUSED):
            pass


class Socket(asyncio.BaseTransport):
    """No asyncio.Transport, as uvloop's is none."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent = 0
        self.reads = True
        self.ended: str | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_reading(self) -> bool:
        return self.reads

    def is_closing(self) -> bool:
        return self.ended is not None

    def close(self) -> None:
        self.ended = "closed"

    def abort(self) -> None:
        self.ended = "aborted"

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol


class Client:
    """`after(seconds)` checks once per second, as the server does."""

    def __init__(self, now: list[float]) -> None:
        self.open: list[Connection] = []
        self.server = Server()
        self.socket = Socket()
        self.connection = Connection(self.server, self.server.conn, self, clock=lambda: now[0])
        self.socket.set_protocol(self.connection)
        self.connection.connection_made(self.socket)
        self._now = now

    def opened(self, connection: Connection) -> None:
        self.open.append(connection)

    def closed(self, connection: Connection) -> None:
        self.open = []

    def send(self, data: bytes) -> None:
        if data:
            self.connection.data_received(data)

    def after(self, seconds: int) -> bool:
        """Whether the connection is late by then."""
        for _ in range(seconds):
            self._now[0] += 1
            if self.connection.is_late(self._now[0], DEADLINES):
                return True
        return False

    def is_silent(self) -> bool:
        return self.connection.silent_since(self._now[0], DEADLINES) is not None


@pytest.fixture
async def client() -> Client:
    return Client([0.0])


@pytest.mark.parametrize("sent", [b"", b"GET / HT", HEAD[:-2]])
async def test_headers_have_a_timeout(client: Client, sent: bytes) -> None:
    client.send(sent)
    assert not client.after(10)
    assert client.after(1)


async def test_slow_headers_do_not_extend_the_timeout(client: Client) -> None:
    client.send(HEAD[:-2])
    assert [client.send(b"X") or client.after(1) for _ in range(11)] == [False] * 10 + [True]


async def test_a_silent_body_is_late(client: Client) -> None:
    client.send(HEAD + b"x" * 10_000)
    assert not client.after(20)
    assert client.after(1)


async def test_slow_body_is_accepted(client: Client) -> None:
    client.send(HEAD)
    for _ in range(90):
        client.send(b"x" * 1000)
        assert not client.after(1)


async def test_body_below_the_minimum_rate_is_late(client: Client) -> None:
    client.send(HEAD)
    assert [client.send(b"x") or client.after(1) for _ in range(22)].count(True) > 0


async def test_paused_reading_does_not_count(client: Client) -> None:
    client.send(HEAD + b"x" * 1000)
    client.socket.reads = False
    assert not client.after(1000)
    client.socket.reads = True
    assert not client.after(19)
    assert client.after(5)


@pytest.mark.parametrize("request_", [GET, HEAD + b"x" * 100_000])
async def test_generating_an_answer_does_not_count(client: Client, request_: bytes) -> None:
    client.send(request_)
    assert not client.after(1000)
    assert not client.is_silent()


async def test_idle_time_between_requests_does_not_count(client: Client) -> None:
    client.send(GET)
    client.server.answer()
    assert not client.after(1000)
    assert client.is_silent()
    client.send(b"GET")
    assert not client.after(10)
    assert client.after(1)


async def test_rest_of_a_pipelined_request_has_a_timeout(client: Client) -> None:
    client.send(GET + b"GET")
    assert not client.after(100)
    client.server.answer()
    assert not client.after(10)
    assert client.after(2)


async def test_client_that_reads_nothing_is_late(client: Client) -> None:
    client.send(GET)
    client.socket.unsent = 1000
    assert not client.after(60)
    client.socket.unsent = 900
    assert not client.after(60)
    assert client.after(2)
    client.connection.end()
    assert client.socket.ended == "aborted"


@pytest.mark.parametrize(
    ("sent", "status"), [(b"", b""), (b"GET / HT", b"HTTP/1.1 408 "), (HEAD + b"x", b"HTTP/1.1 408 ")]
)
async def test_incomplete_request_gets_408(client: Client, sent: bytes, status: bytes) -> None:
    client.send(sent)
    client.connection.end()
    assert client.socket.written[:13] == status
    assert (client.socket.ended, client.open) == ("closed", [])


async def test_upgraded_connection_is_not_watched(client: Client) -> None:
    client.socket.set_protocol(Server())
    assert not client.after(1000)
    assert client.open == []
