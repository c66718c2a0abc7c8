"""Replicas and workers by their commands: what several processes answer is what one would."""

import asyncio
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.databases import PostgresServer
from tests.test_live.service import ROOT, SECONDS, Service, events_of, running, until

pytestmark = [pytest.mark.live, pytest.mark.extended]

RESPONSES = "/v1/responses"
CHAT = "/v1/chat/completions"
QUESTION = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(scope="module")
def url(postgres: PostgresServer) -> str:
    asyncio.run(postgres.execute("CREATE DATABASE of_replicas"))
    return postgres.url("of_replicas")


def serving(folder: Path, url: str, option: str) -> Any:
    """Context manager of two processes with an engine that makes a token each 10 ms."""
    engine = {"MODEL__ENGINE": "tools.faults.token_engine:TokenEngine", "MODEL__ENGINE_OPTIONS": '{"step_s": 0.01}'}
    command = ["tools.cli", "serve", option, "2", "--port"]
    return running(folder, command, cold=True, DATABASE__URL=url, MODEL__NAME=str(folder), **engine)


@pytest.fixture(scope="module")
def service(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("replicas"), url, "--replicas") as service:
        until(lambda: requests.get(f"{service.url}/health/ready", timeout=SECONDS).ok)
        yield service


@pytest.fixture(scope="module")
def key(service: Service, url: str) -> str:
    return new_key(service, url)


def new_key(service: Service, url: str, *limits: str) -> str:
    """Known to all processes, which look for new ones every two seconds."""
    command = [sys.executable, "-m", "tools.cli", "keys", "create", "--name", "a", *limits, "--database-url", url]
    key = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    until(lambda: all(_knows(service, key, f"{session}") for session in range(8)))
    return key


def _knows(service: Service, key: str, session: str) -> bool:
    headers = {"authorization": f"Bearer {key}", "x-session-id": session}
    return requests.get(f"{service.url}/v1/models", headers=headers, timeout=SECONDS).ok


def post(service: Service, path: str, key: str, body: Any = None, *, stream: bool = False, **headers: str) -> Any:
    given = {"authorization": f"Bearer {key}"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(service.url + path, json=body or {}, headers=given, stream=stream, timeout=SECONDS)


def answered(service: Service, key: str, path: str = RESPONSES) -> Counter[str]:
    """Requests by replica."""
    page = requests.get(f"{service.url}/metrics", headers={"authorization": f"Bearer {key}"}, timeout=SECONDS).text
    lines = [
        line for line in page.splitlines() if line.startswith("parley_http_requests_total") and f'"{path}"' in line
    ]
    found = Counter[str]()
    for line in lines:
        found[re.findall(r'replica="(\w+)"', line)[0]] += int(float(line.rpartition(" ")[2]))
    return found


def sessions(service: Service, key: str) -> tuple[str, str]:
    """Two that belong to different replicas."""
    found: dict[str, str] = {}
    for number in range(64):
        before = answered(service, key, CHAT)
        post(service, CHAT, key, {**QUESTION, "max_tokens": 1}, x_session_id=f"s{number}").raise_for_status()
        (replica,) = answered(service, key, CHAT) - before
        found[replica] = f"s{number}"
        if len(found) == 2:
            return found.popitem()[1], found.popitem()[1]
    raise AssertionError("all sessions belong to one replica")


def test_a_chain_stays_where_its_root_was_answered(service: Service, key: str) -> None:
    for root in range(6):
        before, previous = answered(service, key), {}
        for turn in range(4):
            body = {"input": f"{root} {turn}", "max_output_tokens": 2, **previous}
            answer = post(service, RESPONSES, key, body)
            assert answer.ok, answer.text
            previous = {"previous_response_id": answer.json()["id"]}
        assert sorted((answered(service, key) - before).values()) == [4]
    assert len(answered(service, key)) == 2


def test_keys_limits_and_stops_hold_across_replicas(service: Service, key: str, url: str) -> None:
    one, other = sessions(service, key)
    body = {**QUESTION, "max_tokens": 3, "store": True}
    same = [post(service, CHAT, key, body, idempotency_key="k", x_session_id=each) for each in (one, other)]
    assert same[0].json()["id"] == same[1].json()["id"]

    few = new_key(service, url, "--rpm", "3")
    statuses = [
        post(service, CHAT, few, {**QUESTION, "max_tokens": 1}, x_session_id=each).status_code
        for each in (one, other, one, other)
    ]
    assert statuses == [200, 200, 200, 429]

    body = {"input": "Hi", "background": True, "max_output_tokens": 4000}
    begun = post(service, RESPONSES, key, body, x_session_id=one).json()
    path = f"{service.url}{RESPONSES}/{begun['id']}"
    stopped = post(service, f"{RESPONSES}/{begun['id']}/cancel", key, x_session_id=other)
    assert stopped.json()["status"] == "cancelled"
    page = {"authorization": f"Bearer {key}"}
    assert requests.get(path, headers=page, timeout=SECONDS).json()["status"] == "cancelled"

    def is_idle() -> bool:
        text = requests.get(f"{service.url}/metrics", headers=page, timeout=SECONDS).text
        running = re.findall(r'^parley_num_requests_running\{replica="\d".*\} (\S+)$', text, re.MULTILINE)
        return list(map(float, running)) == [0, 0]

    until(is_idle)


def test_a_rolling_restart_fails_no_request(service: Service, key: str) -> None:
    service.process.send_signal(signal.SIGUSR1)
    body = {**QUESTION, "max_tokens": 2}

    def is_over() -> bool:
        assert post(service, CHAT, key, body).status_code == 200
        return "all replicas are restarted" in service.log()

    until(is_over)
    assert {"replica 1", "replica 2"} <= set(re.findall(r"replica \d", service.log()))


def test_a_drain_ends_what_has_begun_and_leaves_no_process(service: Service, key: str) -> None:
    pids = children(service.process.pid)
    assert len(pids) == 2
    body = {**QUESTION, "max_tokens": 150, "stream": True}
    events = events_of(post(service, CHAT, key, body, stream=True))
    next(events)
    service.terminate()
    assert [*events][-1] == "[DONE]"
    assert service.wait() == 0
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_workers(url: str, tmp_path: Path) -> None:
    with serving(tmp_path, url, "--workers") as service:
        until(lambda: len(workers(service)) == 2)
        assert post(service, CHAT, new_key(service, url), {**QUESTION, "max_tokens": 2}).status_code == 200
        pids = workers(service)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def workers(service: Service) -> list[int]:
    return [pid for pid in children(service.process.pid) if b"spawn_main" in command_of(pid)]


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
