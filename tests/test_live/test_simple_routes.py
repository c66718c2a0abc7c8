"""`requests` on the simple routes, as the back ends use it: JSON without a content type."""

import json
import re
from typing import Any

import pytest
import requests

from tests.test_live.service import SECONDS, Service, events_of

pytestmark = pytest.mark.live


def post(service: Service, **body: Any) -> requests.Response:
    url = f"{service.url}/chat/new/message/"
    answer = requests.post(url, data=json.dumps(body), stream=True, timeout=SECONDS)
    assert answer.status_code == 200, answer.text
    return answer


def test_a_plain_answer(service: Service) -> None:
    with post(service, prompt="Hello", max_tokens=8) as response:
        answer = response.json()
    assert set(answer) == {"response", "history", "status", "time", "message_id", "conversation_id"}
    assert answer["status"] == 200
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", answer["time"])
    assert answer["history"][-2:] == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": answer["response"]},
    ]


def test_a_streamed_answer_is_what_is_stored(service: Service) -> None:
    with post(service, prompt="Répondez: où est la mer ? 海在哪里?", max_tokens=24, stream=True) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        pieces = [json.loads(event) for event in events_of(response)]
    assert len(pieces) > 3
    (message_id,) = {piece["message_id"] for piece in pieces}
    assert re.fullmatch("[0-9a-f]{32}", message_id)
    question, reply = service.messages()
    assert question["content"] == "Répondez: où est la mer ? 海在哪里?"
    assert (reply["id"], reply["status"]) == (message_id, "completed")
    assert reply["content"] == "".join(piece["text"] for piece in pieces)


def test_a_history_of_the_callers_own(service: Service) -> None:
    history = [{"role": "user", "content": "My name is Ada."}, {"role": "assistant", "content": "Hello Ada."}]
    with post(service, prompt="What is my name?", history=history, max_tokens=4) as response:
        answer = response.json()
    assert answer["history"][:2] == history


def test_a_reader_of_events_gets_the_whole_answer_as_one(service: Service) -> None:
    url, headers = f"{service.url}/chat/new/message/", {"accept": "text/event-stream"}
    body = json.dumps({"prompt": "Hello", "max_tokens": 8})
    with requests.post(url, data=body, headers=headers, stream=True, timeout=SECONDS) as response:
        (event,) = events_of(response)
    assert json.loads(event)["text"] == service.messages()[-1]["content"]


def test_what_went_wrong_is_told_in_openai_s_words(service: Service) -> None:
    answer = requests.post(f"{service.url}/chat/new/message/", data="{", timeout=SECONDS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    answer = requests.post(f"{service.url}/chat/new/message/", data="{}", timeout=SECONDS)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


def test_the_status_tells_what_runs(service: Service) -> None:
    service.ask("Hello", max_tokens=1)
    status = requests.get(f"{service.url}/chat", timeout=SECONDS).json()
    assert status["status"] == "running"
    assert status["model_name"] == "SmolLM2-135M-Instruct"
    assert status["max_new_tokens"] == 8192
