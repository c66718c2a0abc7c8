"""The front, with replicas that are tasks of the test."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from app.replicas import front as fronts
from app.replicas.affinity import Head
from app.replicas.channel import Channel
from app.replicas.front import Front, Member
from app.replicas.metrics import merged
from app.replicas.processes import gpus, shares

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices": []}\n\n'


class FakeReplica:
    """Keeps the connections that it is handed."""

    def __init__(self, front: Front, name: str) -> None:
        ours, theirs = Channel.pair()
        self.member = Member(name)
        self.taken: asyncio.Queue[tuple[int, socket.socket]] = asyncio.Queue()
        self.is_lost = asyncio.Event()
        front.join(self.member, ours, self.is_lost.set)
        self.channel = Channel(theirs, self._take, lambda: None)
        self.channel.send({"ready": True, "draining": False})

    def _take(self, packet: dict[str, Any], files: list[int]) -> None:
        self.taken.put_nowait((packet["number"], socket.socket(fileno=files[0])))

    async def answer(self) -> None:
        number, connection = await self.taken.get()
        with connection:
            assert connection.recv(65536).startswith(b"POST ")
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + self.member.name.encode())
        self.channel.send({"ended": number})

    def close(self) -> None:
        self.channel.close()
        while not self.taken.empty():
            self.taken.get_nowait()[1].close()

    async def die(self) -> None:
        self.channel.close()
        await self.is_lost.wait()


Join = Callable[[str], Awaitable[list[FakeReplica]]]


async def own(head: Head) -> bytes | None:
    return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nme" if head.path == b"/metrics" else None


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    front = Front(own)
    yield front
    await front.stop()
    front.close()


@pytest.fixture
async def address(front: Front) -> AsyncIterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        front.start(listener)
        yield listener.getsockname()


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(1_000_000):
        if is_so():
            return
        await asyncio.sleep(0)
    raise TimeoutError


@pytest.fixture
async def join(front: Front) -> AsyncIterator[Join]:
    """Replicas that are ready."""
    joined: list[FakeReplica] = []

    async def join(names: str) -> list[FakeReplica]:
        joined.extend(FakeReplica(front, name) for name in names)
        await until(lambda: all(each.member.is_ready for each in joined))
        return joined

    yield join
    for each in joined:
        each.close()


CLIENTS: list[asyncio.StreamWriter] = []


@pytest.fixture(autouse=True)
async def clients() -> AsyncIterator[None]:
    yield
    for each in CLIENTS:
        each.transport.abort()
    await asyncio.sleep(0)
    CLIENTS.clear()


async def send(address: tuple[str, int], text: str, method: str = "POST /") -> asyncio.StreamReader:
    reader, writer = await asyncio.open_connection(*address)
    body = json.dumps({"messages": [{"role": "user", "content": text}]})
    CLIENTS.append(writer)
    writer.write(f"{method} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    await writer.drain()
    return reader


async def test_requests_of_one_conversation_go_to_one_replica(join: Join, address: tuple[str, int]) -> None:
    answering = [asyncio.create_task(_for_ever(each)) for each in await join("abc")]
    answered = [[(await (await send(address, f"{n}")).read())[-1:] for _ in range(3)] for n in range(12)]
    for task in answering:
        task.cancel()
    assert all(len(set(each)) == 1 for each in answered)
    assert len({each[0] for each in answered}) > 1


async def _for_ever(replica: FakeReplica) -> None:
    while True:
        await replica.answer()


async def test_load_overrides_affinity(join: Join, address: tuple[str, int]) -> None:
    replicas = await join("ab")
    for _ in range(60):
        await send(address, "the same")
    await until(lambda: sum(each.taken.qsize() for each in replicas) == 60)
    assert min(each.taken.qsize() for each in replicas) >= 20


async def test_clients_of_one_that_dies_are_told(join: Join, address: tuple[str, int]) -> None:
    (replica,) = await join("a")
    streamed, waiting = [await send(address, text) for text in ("1", "2")]
    number, connection = await replica.taken.get()
    connection.sendall(CHUNKED + b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
    begun = {"path": "/v1/chat/completions", "content_type": "text/event-stream; charset=utf-8", "is_chunked": True}
    replica.channel.send({"begun": number, **begun})
    _, other = await replica.taken.get()
    await until(lambda: replica.member.open[number].begun is not None)
    connection.close()
    other.close()
    await replica.die()
    text = await streamed.read()
    assert text.startswith(CHUNKED)
    assert b'data: {"error":{"message":"The process that answered is gone"' in text
    assert text.endswith(b"\r\n0\r\n\r\n")
    refusal = await waiting.read()
    assert refusal.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in refusal
    assert (await (await send(address, "3")).read()).startswith(b"HTTP/1.1 503 ")


async def test_no_request_goes_to_one_that_leaves(join: Join, address: tuple[str, int]) -> None:
    leaving, staying = await join("ab")
    leaving.channel.send({"ready": False, "draining": True})
    await until(lambda: not leaving.member.takes_requests)
    for n in range(8):
        await send(address, f"{n}")
    await until(lambda: staying.taken.qsize() == 8)


async def test_what_does_not_arrive_is_any_replicas(
    join: Join, address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fronts, "LOOK_S", 0.0)
    (replica,) = await join("a")
    CLIENTS.append((await asyncio.open_connection(*address))[1])
    (await replica.taken.get())[1].close()


async def test_some_requests_are_the_fronts_own(address: tuple[str, int]) -> None:
    assert (await (await send(address, "", "GET /metrics")).read()).endswith(b"me")


def test_metrics_have_the_replica() -> None:
    page = '# HELP a_total A.\n# TYPE a_total counter\na_total{b="}"} 1.0\n# HELP c C.\n# TYPE c gauge\nc 2.0\n'
    assert merged({"1": page, "2": "", "3": page}).splitlines() == [
        "# HELP a_total A.",
        "# TYPE a_total counter",
        'a_total{replica="1",b="}"} 1.0',
        'a_total{replica="3",b="}"} 1.0',
        "# HELP c C.",
        "# TYPE c gauge",
        'c{replica="1"} 2.0',
        'c{replica="3"} 2.0',
    ]


def test_the_machine_is_divided() -> None:
    common: dict[str, Any] = {"memory_share": 0.4, "gpu_share": 0.9, "is_local": True}
    found = shares(2, range(5), ["0"], **common)
    assert [each.cores for each in found] == [{0, 1}, {2, 3, 4}]
    assert found[1].environment == {
        "PARLEY_ENGINE__CPU_MEMORY_SHARE": "0.200000",
        "PARLEY_ENGINE__GPU_MEMORY_UTILIZATION": "0.450000",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    found = shares(3, [0, 1], ["4", "5", "6"], **common)
    assert [each.environment["CUDA_VISIBLE_DEVICES"] for each in found] == ["4", "5", "6"]
    assert [each.environment["PARLEY_ENGINE__GPU_MEMORY_UTILIZATION"] for each in found] == ["0.900000"] * 3
    assert not found[0].cores  # fewer than replicas
    assert shares(2, range(4), ["0"], **common | {"is_local": False})[0].environment == {}
    assert gpus({"CUDA_VISIBLE_DEVICES": "1, 3"}) == ["1", "3"]
    assert gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
