"""Replicas on Ray, which is an extra of its own."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import httpx2
import psutil  # type: ignore[import-untyped]
import pytest
from starlette.types import Message, Receive, Scope, Send

from app.replicas.affinity import Head, key
from app.replicas.gone import MESSAGE
from app.replicas.ray_proxy import LastEvent, SessionKey
from services.affinity import of_session
from tests.databases import PostgresServer, free_port

ROOT = Path(__file__).parents[3]
BODY = b'{"conversation": "a", "messages": []}'


async def keys_of(
    *bodies: list[bytes], method: str = "POST", headers: tuple[tuple[bytes, bytes], ...] = ()
) -> list[str]:
    """The session of each request, whose body must reach the app as it was."""
    found = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found.append(dict(scope["headers"]).get(b"x-session-id", b"").decode())
        body, more = b"", method == "POST"
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body", False)
        await send({"type": "seen", "body": body})

    for body in bodies:
        messages = iter([{"body": part, "more_body": number < len(body) - 1} for number, part in enumerate(body)])
        sent: list[Message] = []

        async def receive(messages: Iterator[Message] = messages) -> Message:
            return next(messages)

        async def send(message: Message, sent: list[Message] = sent) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "path": "/v1/responses", "headers": list(headers)}
        await SessionKey(app)(scope, receive, send)
        assert sent[0]["body"] == (b"".join(body) if method == "POST" else b"")
    return found


async def test_the_key_is_that_of_the_front() -> None:
    whole, parts, other = await keys_of([BODY], [BODY[:9], BODY[9:]], [BODY.replace(b'"a"', b'"b"')])
    assert whole
    assert whole == parts
    assert whole != other
    assert whole == key(Head(b"POST", b"/", {}, BODY, is_complete=True))
    mine = ((b"x-session-id", b"mine"),)
    assert (
        await keys_of([BODY], headers=mine) == await keys_of([BODY], method="GET", headers=mine) == [of_session("mine")]
    )
    assert await keys_of([BODY], method="GET") == [""]
    assert await keys_of([b"x" * 70000, b"y"])


async def ended(*messages: Message, path: str = "/v1/chat/completions") -> list[Message]:
    """What a client gets of an app that sends these and returns."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    await LastEvent(app)({"type": "http", "method": "POST", "path": path, "headers": []}, receive, send)
    return sent


def start_of(kind: bytes) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}


async def test_an_answer_whose_replica_is_gone_gets_an_end() -> None:
    stream = start_of(b"text/event-stream; charset=utf-8")
    part: Message = {"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True}
    last: Message = {"type": "http.response.body", "body": b""}

    nothing = await ended()
    assert nothing[0]["status"] == 503
    assert (b"retry-after", b"1") in nothing[0]["headers"]
    assert json.loads(nothing[1]["body"])["error"]["type"] == "service_unavailable_error"
    cut = await ended(stream, part)
    assert cut[:2] == [stream, part]
    assert json.loads(cut[2]["body"].removeprefix(b"data: "))["error"]["message"] == MESSAGE
    assert not cut[2].get("more_body", False)
    assert (await ended(stream, part, path="/v1/responses"))[2]["body"].startswith(b"event: error\ndata: ")
    assert await ended(stream, part, last) == [stream, part, last]
    whole = start_of(b"application/json")
    assert await ended(whole, part) == [whole, part]  # the client notices by the end of the connection


needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'parley[ray]'")


@contextmanager
def deployed(tmp_path: Path, postgres: PostgresServer, port: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    database = f"on_ray_{port}"
    asyncio.run(postgres.execute(f"CREATE DATABASE {database}"))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PARLEY_DATABASE__URL": postgres.url(database),
        "PARLEY_MODEL__ENGINE": "tools.faults.token_engine:TokenEngine",
        "PARLEY_MODEL__NAME": str(tmp_path),
    }
    given = ["--address", "local", "--cpus", "0.5", "--port", str(port), *options]
    process = subprocess.Popen([sys.executable, "-m", "tools.cli", "deploy", *given], env=environment, cwd=tmp_path)
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.extended
@needs_ray
def test_replicas_on_ray_answer_behind_one_address(postgres: PostgresServer, tmp_path: Path) -> None:
    port = free_port()
    with (
        deployed(tmp_path, postgres, port, "--replicas", "2") as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        _wait_until_ready(client)
        first = _replicas(client)
        assert _ports_on_all_interfaces(process.pid) == []
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "stream": True}
        lines = client.post("/v1/chat/completions", json=body).text.splitlines()
        assert lines[-2] == "data: [DONE]"
        assert len(json.loads(lines[0].removeprefix("data: "))["choices"]) == 1
        begun = client.post("/v1/responses", json={"input": "Hi", "background": True, "max_output_tokens": 5}).json()
        stream = client.get(f"/v1/responses/{begun['id']}", params={"stream": "true"}).text
        assert stream.rstrip().splitlines()[-2] == "event: response.incomplete"

        process.send_signal(signal.SIGUSR1)
        while first & _replicas(client):
            time.sleep(0.5)
        assert client.get(f"/v1/responses/{begun['id']}").json()["status"] == "incomplete"


@pytest.mark.extended
@needs_ray
def test_replicas_on_ray_can_be_ended_while_they_start(postgres: PostgresServer, tmp_path: Path) -> None:
    port = free_port()
    with deployed(tmp_path, postgres, port):
        for _ in range(240):
            with suppress(httpx2.TransportError):
                httpx2.get(f"http://127.0.0.1:{port}/-/healthz")
                break
            time.sleep(0.1)


def _replicas(client: httpx2.Client) -> set[str]:
    """That have reported; two at least."""
    for _ in range(120):
        if len(found := set(re.findall('replica="([^"]+)"', client.get("/metrics").text))) >= 2:
            return found
        time.sleep(0.5)
    raise TimeoutError


def _ports_on_all_interfaces(pid: int) -> list[int]:
    """Of a process and its descendants."""
    connections = [
        connection
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for connection in process.net_connections("tcp")
    ]
    here = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    return [each.laddr.port for each in connections if each.status == "LISTEN" and each.laddr.ip not in here]


def _wait_until_ready(client: httpx2.Client) -> None:
    for _ in range(240):
        try:
            if client.get("/health/ready").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.5)
    raise TimeoutError
