"""Bodies of 15 MB of words to each route that tokenises: refused or cut, and the memory stays where it was."""

import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.test_live.service import SECONDS, Service, running, until

pytestmark = pytest.mark.live

SIZE = 15_000_000
AT_ONCE = 4
PEAK = 800  # MiB over what it had: four bodies as they come, decoded, parsed and rendered; it was 6,700
LEFT = 300  # MiB of these that may stay: heaps that are still in use; it was 4,500
TOO_LONG = "context_length_exceeded"


@pytest.fixture(scope="module")
def warm(models: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Both models loaded."""
    with running(tmp_path_factory.mktemp("long")) as service:
        ask(service, "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})
        ask(service, "/v1/embeddings", {"input": "hi"})
        yield service


@pytest.fixture(scope="module")
def words() -> str:
    chance = random.Random(1)
    known = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(20_000)]
    return " ".join(chance.choices(known, k=SIZE // 6))[:SIZE]


def ask(service: Service, path: str, body: dict[str, Any]) -> requests.Response:
    return requests.post(service.url + path, json=body, timeout=SECONDS)


def code(answer: requests.Response) -> Any:
    assert answer.status_code == 400, answer.text[:300]
    error = answer.json()["error"]
    return error["code"] if isinstance(error, dict) else error


def memory(service: Service, name: str) -> int:
    """MiB: VmRSS, or its peak VmHWM."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    found = re.search(rf"{name}:\s+(\d+)", status)
    assert found
    return int(found[1]) // 1024


def test_four_at_once_leave_nothing_behind(warm: Service, words: str) -> None:
    chat = {"messages": [{"role": "user", "content": words}]}
    bodies = [
        ("/v1/chat/completions", chat),
        ("/v1/completions", {"prompt": words}),
        ("/v1/responses", {"input": words}),
        ("/v1/embeddings", {"input": words}),
    ]
    before = memory(warm, "VmRSS")
    Path(f"/proc/{warm.process.pid}/clear_refs").write_text("5")  # the peak begins anew

    for path, body in bodies:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            answers = list(threads.map(lambda _, path=path, body=body: ask(warm, path, body), range(AT_ONCE)))
        assert [code(answer) for answer in answers] == [TOO_LONG] * AT_ONCE
    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = list(threads.map(lambda _: ask(warm, "/tokenize", {"prompt": words}), range(AT_ONCE)))
    assert ["MAX_TOKENIZE_CHARS" in answer.json()["error"]["message"] for answer in answers] == [True] * AT_ONCE

    assert memory(warm, "VmHWM") - before < PEAK
    until(lambda: memory(warm, "VmRSS") - before < LEFT)


def test_every_route_says_so(warm: Service, words: str) -> None:
    chat = {"messages": [{"role": "user", "content": words}]}
    assert "prompt is too long" in ask(warm, "/v1/messages", {**chat, "model": "default", "max_tokens": 1}).text
    assert code(ask(warm, "/v1/responses", {"input": words, "truncation": "auto"})) == TOO_LONG
    assert code(ask(warm, "/v1/rerank", {"query": words, "documents": ["a", "b"] * 400})) == TOO_LONG
    assert code(ask(warm, "/v1/score", {"text_1": "a", "text_2": words})) == TOO_LONG
    many = ask(warm, "/v1/embeddings", {"input": [words[i : i + 7_500] for i in range(0, SIZE, 7_500)][:2_000]})
    assert code(many) == TOO_LONG
    assert ask(warm, "/api/chat", {**chat, "model": "default", "stream": False}).status_code == 400
    for path, body in {
        "/v1/messages/count_tokens": {**chat, "model": "default"},
        "/v1/chat/completions/input_tokens": chat,
        "/v1/responses/input_tokens": {"input": words},
        "/tokenize": chat,
    }.items():
        assert "MAX_TOKENIZE_CHARS" in ask(warm, path, body).text


def test_what_is_to_be_cut_is_cut(warm: Service, words: str) -> None:
    cut = {"truncate_prompt_tokens": 100}
    usage = ask(warm, "/v1/completions", {"prompt": words, "max_tokens": 4, **cut}).json()["usage"]
    assert usage["prompt_tokens"] == 100
    assert usage["prompt_tokens_details"]["truncated_tokens"] > SIZE // 10
    vectors = [
        ask(warm, "/v1/embeddings", {"input": text, **cut}).json()["data"][0]["embedding"]
        for text in (words, words[:5_000])
    ]
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-3)
