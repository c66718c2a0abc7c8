"""Two keys: who has none stays out, and neither sees what the other said."""

from typing import Any

import pytest
import requests

from tests.test_live.conftest import KEYS
from tests.test_live.service import SECONDS, Service, events_of

pytestmark = pytest.mark.live


class Holder:
    def __init__(self, service: Service, **headers: str) -> None:
        self._url = service.url
        self._headers = headers

    def get(self, path: str, **query: Any) -> requests.Response:
        return requests.get(self._url + path, query, headers=self._headers, timeout=SECONDS, stream=True)

    def post(self, path: str, **body: Any) -> requests.Response:
        return requests.post(self._url + path, json=body, headers=self._headers, timeout=SECONDS)


@pytest.fixture
def first(guarded: Service) -> Holder:
    return Holder(guarded, authorization=f"Bearer {KEYS[0]}")


@pytest.fixture
def second(guarded: Service) -> Holder:
    return Holder(guarded, **{"x-api-key": KEYS[1]})


def test_without_a_key_nothing_but_probes_answers(guarded: Service) -> None:
    nobody = Holder(guarded)
    for path in ("/v1/models", "/chat", "/chat/get/messages/", "/chat/stream?prompt=Hello", "/metrics", "/nowhere"):
        assert nobody.get(path).status_code == 401, path
    for path in ("/v1/chat/completions", "/chat/new/message/", "/chat/token", "/embeddings"):
        assert nobody.post(path).status_code == 401, path
    for path in ("/health", "/health/live", "/"):
        assert nobody.get(path).status_code == 200, path
    assert nobody.get("/health/ready").status_code in (200, 503)  # as the model may still be loading


def test_a_conversation_is_its_owners_alone(first: Holder, second: Holder) -> None:
    said = first.post("/chat/new/message/", prompt="My secret is the sea.", max_tokens=2).json()
    mine = {"conversation_id": said["conversation_id"]}
    assert first.get("/chat/get/messages/", **mine).json()["data"][1]["id"] == said["message_id"]
    assert second.get("/chat/get/messages/", **mine).status_code == 404
    assert second.post("/chat/new/message/", prompt="And?", **mine).status_code == 404
    asked = {"messages": [{"content": "And?"}], "conversation": said["conversation_id"], "stream": True}
    assert second.post("/v1/chat/completions", **asked).status_code == 404
    assert second.get("/chat/stream", prompt="And?", **mine).status_code == 404
    assert said["message_id"] not in second.get("/chat/get/messages/").text


def test_a_stream_goes_on_for_its_owner_alone(guarded: Service, first: Holder, second: Holder) -> None:
    token, foreign = (holder.post("/chat/token").json()["token"] for holder in (first, second))

    def stream(token: str, **headers: str) -> requests.Response:
        return Holder(guarded, **headers).get(
            "/chat/stream", prompt="Name a colour.", max_tokens=6, temperature=0, token=token
        )

    with stream(token) as response:
        events = list(events_of(response))
        assert len(events) > 2  # start, text, done
    stored = first.get("/chat/get/messages/").json()["data"][-1]
    assert "".join(events[1:-1]) == stored["content"]
    assert stored["id"] in events[-1]

    seen = f"{stored['id']}:{len(events[1])}"
    with stream(token, **{"last-event-id": seen}) as response:
        rest = list(events_of(response))
    assert "".join(rest[:-1]) == stored["content"][len(events[1]) :]
    assert stream(foreign, **{"last-event-id": seen}).status_code == 404
    assert stream(token, **{"last-event-id": f"{stored['id']}:end"}).status_code == 204
    assert stream("nobody's.9999999999.0").status_code == 401
    assert Holder(guarded).get("/v1/models", token=token).status_code == 401
