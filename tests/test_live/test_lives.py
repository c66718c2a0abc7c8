"""What remains of a service that is killed, and how one goes that is told to."""

import json
from pathlib import Path

import pytest
import requests

from tests.test_live.service import ENDLESS, SECONDS, Service, events_of, running, text_of, until

pytestmark = pytest.mark.live


def begin(service: Service, max_tokens: int) -> requests.Response:
    asked = {"messages": [{"content": ENDLESS}], "temperature": 0, "max_tokens": max_tokens, "stream": True}
    asked["conversation"] = service.ask("Hello", max_tokens=2)["conversation_id"]
    return requests.post(f"{service.url}/v1/chat/completions", json=asked, stream=True, timeout=SECONDS)


async def test_kill_in_the_middle_of_an_answer(folder: Path, database_url: str) -> None:
    with (
        running(folder, DATABASE__URL=database_url, CHAT__CHECKPOINT_S="0.2") as service,
        begin(service, max_tokens=4000) as stream,
    ):
        said = until(lambda: service.messages()[-1]["content"])  # its first checkpoint
        service.kill()
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            list(events_of(stream))

    with running(folder, DATABASE__URL=database_url) as service:
        until(lambda: service.messages()[-1]["status"] != "in_progress")
        *_, question, reply = service.messages()
        assert (question["role"], question["content"], question["status"]) == ("user", ENDLESS, "completed")
        assert (reply["role"], reply["status"]) == ("assistant", "incomplete")
        assert reply["content"].startswith(said)
        answer = service.ask("And then?", max_tokens=4, conversation_id=reply["conversation_id"])
        assert [each["content"] for each in answer["history"]][-4:-1] == [ENDLESS, reply["content"], "And then?"]
        assert service.messages()[-1]["status"] == "completed"


def test_a_running_answer_is_finished_before_the_service_ends(folder: Path) -> None:
    with running(folder) as service:
        with begin(service, max_tokens=100) as stream:
            events = events_of(stream)
            next(events)
            service.terminate()
            until(lambda: requests.get(f"{service.url}/health/ready", timeout=SECONDS).status_code == 503)
            assert requests.get(f"{service.url}/health/live", timeout=SECONDS).ok
            refused = requests.post(f"{service.url}/v1/chat/completions", json={}, timeout=SECONDS)
            assert refused.status_code == 503
            assert float(refused.headers["retry-after"]) > 0
            *chunks, end = list(events)
        assert end == "[DONE]"
        assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "length"
        assert service.wait() in (0, -15)

    with running(folder) as service:
        reply = service.messages()[-1]
        assert reply["status"] == "completed"
        assert reply["content"] == text_of(map(json.loads, chunks))


def test_an_answer_that_takes_too_long_ends_with_an_error(folder: Path) -> None:
    with running(folder, SERVER__DRAIN_S="1") as service:
        with begin(service, max_tokens=4000) as stream:
            events = events_of(stream)
            first, second = next(events), next(events)
            service.terminate()
            *chunks, error, end = list(events)
        assert end == "[DONE]"
        assert json.loads(error)["error"]["type"] == "service_unavailable_error"
        assert service.wait() in (0, -15)

    with running(folder) as service:
        reply = service.messages()[-1]
        assert reply["status"] == "incomplete"
        assert reply["content"] == text_of(map(json.loads, [first, second, *chunks]))
