"""Clients that leave the server waiting, more of them than it may open files."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import cycle

import pytest
import requests

from tests.test_live.service import UVICORN, Service, running

FILES = 256
MANY = 300
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
KINDS = [b"", b"GET /health HT", HEAD, HEAD + b'Content-Length: 100\r\n\r\n{"messages"']
STARTS: dict[str, list[str]] = {
    "uvicorn": UVICORN,
    "parley": ["tools.cli", "serve", "--port"],
}


@pytest.fixture(scope="module", params=list(STARTS))
def limited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = {"HEADERS_TIMEOUT_S": "2", "BODY_TIMEOUT_S": "2", "BODY_RATE": "500"}
    folder = tmp_path_factory.mktemp("limited")
    with running(
        folder, STARTS[request.param], FILES, cold=True, **{f"SERVER__{key}": value for key, value in settings.items()}
    ) as service:
        yield service


def connect(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=30)


def is_open(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        while client.recv(4096):
            pass
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def is_healthy(service: Service) -> bool:
    return requests.get(f"{service.url}/health", timeout=10).ok


def test_silent_connections_stop_nobody(limited: Service) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(limited)) for _ in range(MANY)]
        for client, said in zip(clients, cycle(KINDS), strict=False):
            _send(client, said)
        while any(map(is_open, clients)):
            assert is_healthy(limited)
            for client in clients[2::4]:  # a byte now and then, in the middle of its headers
                _send(client, b"x")
            time.sleep(0.1)
    assert is_healthy(limited)
    assert len(limited.log()) < 50_000


def _send(client: socket.socket, data: bytes) -> None:
    with suppress(OSError):  # ended by the server
        client.send(data)
