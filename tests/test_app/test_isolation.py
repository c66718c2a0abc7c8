"""Two keys: stored objects of one do not exist for the other, on any route."""

from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from tests.apps import MODEL, NewSite, Site

MINE, YOURS = {"X-API-Key": "mine"}, {"X-API-Key": "yours"}
SECRET = "xylophone"
MESSAGES = [{"role": "user", "content": SECRET}]
TAKEN = {"model", "model_id", "path"}  # path parameters without an owner
BODIES: dict[str, Any] = {
    "/v1/conversations/{conversation_id}": {"metadata": {"a": "b"}},
    "/v1/conversations/{conversation_id}/items": {"items": [{"role": "user", "content": "x"}]},
    "/v1/chat/completions/{completion_id}": {"metadata": {"a": "b"}},
}


@dataclass(frozen=True, slots=True)
class Stored:
    """Objects of the first key, by path parameter."""

    site: Site
    ids: dict[str, str]

    async def ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        return await self.site.client.request(method, path, headers=YOURS | more.pop("headers", {}), **more)


@pytest.fixture
async def stored(new_site: NewSite) -> Stored:
    site = await new_site(api_keys="mine,yours")

    async def post(path: str, **body: Any) -> dict[str, Any]:
        answer = await site.client.post(path, json=body, headers=MINE)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    conversation = (await post("/v1/conversations", items=MESSAGES))["id"]
    items = await site.client.get(f"/v1/conversations/{conversation}/items", headers=MINE)
    ids = {
        "conversation_id": conversation,
        "item_id": items.json()["data"][0]["id"],
        "completion_id": (await post("/v1/chat/completions", model=MODEL, messages=MESSAGES, store=True))["id"],
        "response_id": (await post("/v1/responses", model=MODEL, input=SECRET))["id"],
        "message_id": (await post("/chat/new/message/", prompt=SECRET))["message_id"],
    }
    return Stored(site, ids | {"found_id": f"{conversation}:{ids['item_id']}"})


def routes(site: Site) -> list[tuple[str, str]]:
    return [
        (method.upper(), path)
        for path, methods in site.app.openapi()["paths"].items()
        for method in methods
        if method.upper() in ("GET", "POST", "DELETE") and "{" in path
    ]


# Ids in query or body; each has a test below.
NAMED = {
    *("/v1/chat/completions", "/v1/chat/completions/input_tokens", "/v1/responses", "/v1/responses/input_tokens"),
    *("/v1/conversations", "/v1/conversations/search"),
    *("/chat/new/message/", "/chat/get/messages/", "/chat/stream"),
}
# Routes that store nothing and return nothing stored.
NOBODYS = {
    *("/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/score", "/v1/models", "/v1/responses/compact"),
    *("/v1/messages", "/v1/messages/count_tokens", "/predict", "/tokenize", "/detokenize", "/tokenizer_info"),
    *("/chat", "/chat/token", "/health", "/health/live", "/health/ready", "/metrics"),
    *(f"/api/{name}" for name in ("chat", "generate", "embed", "embeddings", "show", "tags", "ps", "version")),
}


def test_all_routes_with_ids_are_tested(site: Site) -> None:
    """A new route must be added to one of these lists, and to a test if it takes owned ids."""
    assert {path for path in site.app.openapi()["paths"] if "{" not in path} == NAMED | NOBODYS


async def test_foreign_ids_are_not_found_on_any_route(stored: Stored) -> None:
    walked = []
    for method, path in routes(stored.site):
        if any(f"{{{name}" in path for name in TAKEN):
            continue
        url = path.format(**stored.ids)  # a KeyError means a new route, whose objects must be stored above
        for prefixed in {url, url.removeprefix("/v1")}:
            answer = await stored.ask(method, prefixed, json=BODIES.get(path, {}) if method == "POST" else None)
            assert answer.status_code == 404, f"{method} {prefixed}: {answer.status_code} {answer.text}"
            assert SECRET not in answer.text
            walked.append(prefixed)
    assert len(walked) >= 30
    # everything is still there
    for url in [f"/v1/chat/completions/{stored.ids['completion_id']}", f"/v1/responses/{stored.ids['response_id']}"]:
        assert (await stored.site.client.get(url, headers=MINE)).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/conversations",
        f"/v1/conversations/search?query={SECRET}",
        "/chat/get/messages/",
    ],
)
async def test_lists_are_empty(stored: Stored, path: str) -> None:
    answer = await stored.ask("GET", path)
    assert (answer.status_code, answer.json()["data"]) == (200, [])
    assert (await stored.site.client.get(path, headers=MINE)).json()["data"] != []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/chat/completions?after={}", "completion_id"),
        ("/v1/conversations?after={}", "conversation_id"),
        ("/chat/get/messages/?conversation_id={}", "conversation_id"),
        ("/chat/stream?prompt=x&conversation_id={}", "conversation_id"),
        (f"/v1/conversations/search?query={SECRET}&after={{}}", "found_id"),
    ],
)
async def test_foreign_id_is_no_cursor(stored: Stored, path: str, name: str) -> None:
    answer = await stored.ask("GET", path.format(stored.ids[name]))
    assert answer.status_code in (400, 404)
    assert SECRET not in answer.text


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES, "conversation": "conversation_id"}, "conversation"),
        ("/v1/responses", {"input": "x", "conversation": "conversation_id"}, "conversation"),
        ("/v1/responses", {"input": "x", "previous_response_id": "response_id"}, "previous_response_id"),
        ("/v1/responses", {"input": [{"type": "item_reference", "id": "item_id"}]}, "input"),
        ("/v1/responses/input_tokens", {"input": "x", "previous_response_id": "response_id"}, "previous_response_id"),
        ("/v1/chat/completions/input_tokens", {"messages": MESSAGES, "conversation": "conversation_id"}, ""),
        ("/chat/new/message/", {"prompt": "x", "conversation_id": "conversation_id"}, "conversation"),
    ],
)
async def test_foreign_answer_cannot_be_continued(stored: Stored, path: str, body: dict[str, Any], name: str) -> None:
    def named(value: Any) -> Any:
        match value:
            case str():
                return stored.ids.get(value, value)
            case dict():
                return {key: named(each) for key, each in value.items()}
            case list():
                return [named(each) for each in value]

    answer = await stored.ask("POST", path, json=named(body))
    assert answer.status_code in (400, 404), answer.text
    assert (answer.json()["error"]["param"] or "").startswith(name)


async def test_foreign_stream_cannot_be_resumed_or_stopped(stored: Stored) -> None:
    for seen in ("0", "5"):
        event = {"Last-Event-ID": f"{stored.ids['message_id']}:{seen}"}
        answer = await stored.ask("GET", "/chat/stream", params={"prompt": "-"}, headers=event)
        assert answer.status_code == 404
    answer = await stored.ask("GET", f"/v1/responses/{stored.ids['response_id']}", params={"stream": "true"})
    assert answer.status_code == 404
