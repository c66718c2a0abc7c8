"""A model in several processes: what becomes of them when one is killed, and when the service ends."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from tests.test_live.service import CHAT, MODELS, SECONDS, Service, events_of, running, until
from tools.faults import tiny_model

pytestmark = [pytest.mark.live, pytest.mark.extended]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.make(tmp_path_factory.mktemp("model"), MODELS / CHAT)


def followers(service: Service) -> list[int]:
    return [pid for pid in _processes() if _is_follower(pid, service.process.pid)]


def _processes() -> Iterator[int]:
    yield from (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _is_follower(pid: int, leader: int) -> bool:
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return b"services.engine.parallel.follower" in command and parent == leader
    return False


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def ask(service: Service, max_tokens: int, *, stream: bool) -> requests.Response:
    asked = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "stream": stream}
    asked |= {"max_tokens": max_tokens, "ignore_eos": True}
    return requests.post(f"{service.url}/v1/chat/completions", json=asked, stream=stream, timeout=SECONDS)


def long_answer(service: Service) -> requests.Response:
    return ask(service, 1900, stream=True)


def short_answer(service: Service) -> str:
    answer = ask(service, 30, stream=False)
    assert answer.ok, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def test_a_killed_follower_fails_the_running_answers_and_all_ranks_start_again(folder: Path, model: Path) -> None:
    with running(
        folder, cold=True, MODEL__NAME=str(model), ENGINE__TENSOR_PARALLEL_SIZE="2", MODEL__DTYPE="float32"
    ) as service:
        expected = short_answer(service)
        (first,) = followers(service)
        with long_answer(service) as response:
            events = events_of(response)
            next(events)
            os.kill(first, signal.SIGKILL)
            *_, last = [json.loads(event) for event in events if event != "[DONE]"]
        assert "loaded again" in last["error"]["message"]
        assert short_answer(service) == expected
        (second,) = followers(service)
        assert second != first
    assert not is_alive(second)

    with running(folder, cold=True, MODEL__NAME=str(model), MODEL__DTYPE="float32") as service:
        assert short_answer(service) == expected


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_follower_outlives_the_service(folder: Path, model: Path, how: signal.Signals) -> None:
    with (
        running(folder, cold=True, MODEL__NAME=str(model), ENGINE__TENSOR_PARALLEL_SIZE="2") as service,
        long_answer(service) as response,
    ):
        next(events_of(response))
        (follower,) = followers(service)
        service.process.send_signal(how)
        service.wait()
        until(lambda: not is_alive(follower))
