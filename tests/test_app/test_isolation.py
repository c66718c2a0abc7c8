"""Two keys, of the settings or of two projects: stored objects of one do not exist for the other, on any route."""

import json
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from services.key_service import NewKey
from tests.apps import MODEL, NewSite, Site, is_administration

SECRET = "xylophone"
MESSAGES = [{"role": "user", "content": SECRET}]
TAKEN = {"model", "model_id", "path"}  # path parameters without an owner
BODIES: dict[str, Any] = {
    "/v1/conversations/{conversation_id}": {"metadata": {"a": "b"}},
    "/v1/conversations/{conversation_id}/items": {"items": [{"role": "user", "content": "x"}]},
    "/v1/chat/completions/{completion_id}": {"metadata": {"a": "b"}},
    "/v1/uploads/{upload_id}/complete": {"part_ids": ["part_1"]},
}
FORMS = {"/v1/uploads/{upload_id}/parts": {"data": ("part", b"x")}}


@dataclass(frozen=True, slots=True)
class Stored:
    """Objects of the first key, by path parameter."""

    site: Site
    ids: dict[str, str]
    mine: dict[str, str]
    yours: dict[str, str]

    async def ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        return await self.site.client.request(method, path, headers=self.yours | more.pop("headers", {}), **more)


@dataclass(frozen=True, slots=True)
class TwoKeys:
    mine: str
    yours: str
    administered: dict[str, str]  # ids of the first key, its project and account


async def keys_of(site: Site, kind: str) -> TwoKeys:
    if kind == "settings":
        return TwoKeys("mine", "yours", dict.fromkeys(("project_id", "account_id", "key_id"), "none"))
    create = site.services.stored_keys.create_in
    (mine, project), (yours, _) = [await create(name, NewKey(name=name, project_id="")) for name in "ab"]
    ids = {"project_id": project.id, "account_id": mine.account.id, "key_id": mine.row.id}
    return TwoKeys(mine.value, yours.value, ids)


@pytest.fixture(params=["settings", "projects"])
async def stored(new_site: NewSite, request: pytest.FixtureRequest) -> Stored:
    site = await new_site(api_keys="mine,yours")
    keys = await keys_of(site, request.param)
    headers = {"X-API-Key": keys.mine}

    async def post(path: str, **body: Any) -> dict[str, Any]:
        answer = await site.client.post(path, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    conversation = (await post("/v1/conversations", items=MESSAGES))["id"]
    items = await site.client.get(f"/v1/conversations/{conversation}/items", headers=headers)
    ids = {
        "conversation_id": conversation,
        "item_id": items.json()["data"][0]["id"],
        "completion_id": (await post("/v1/chat/completions", model=MODEL, messages=MESSAGES, store=True))["id"],
        "response_id": (await post("/v1/responses", model=MODEL, input=SECRET))["id"],
        "message_id": (await post("/chat/new/message/", prompt=SECRET))["message_id"],
    }
    upload = {"file": ("a.txt", SECRET)}
    file = await site.client.post("/v1/files", files=upload, data={"purpose": "user_data"}, headers=headers)
    requests = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": SECRET}})
    upload = {"file": ("in.jsonl", requests)}
    input = await site.client.post("/v1/files", files=upload, data={"purpose": "batch"}, headers=headers)
    window = {"endpoint": "/v1/completions", "completion_window": "24h"}
    batch = await post("/v1/batches", input_file_id=input.json()["id"], metadata={"a": SECRET}, **window)
    part = {"bytes": 1, "filename": SECRET, "mime_type": "text/plain", "purpose": "batch"}
    ids["upload_id"] = (await post("/v1/uploads", **part))["id"]
    ids |= {"file_id": file.json()["id"], "input_file_id": input.json()["id"], "batch_id": batch["id"]}
    ids |= {"found_id": f"{conversation}:{ids['item_id']}", "rate_limit_id": f"rl-{MODEL}"} | keys.administered
    return Stored(site, ids, headers, {"X-API-Key": keys.yours})


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
    *("/v1/conversations", "/v1/conversations/search", "/v1/files", "/v1/batches"),
    *("/chat/new/message/", "/chat/get/messages/", "/chat/stream"),
}
# Routes that store nothing and return nothing stored.
NOBODYS = {
    *("/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/score", "/v1/models", "/v1/responses/compact"),
    *("/v1/messages", "/v1/messages/count_tokens", "/predict", "/tokenize", "/detokenize", "/tokenizer_info"),
    *("/v1/uploads", "/chat", "/chat/token", "/health", "/health/live", "/health/ready", "/metrics"),
    *(f"/api/{name}" for name in ("chat", "generate", "embed", "embeddings", "show", "tags", "ps", "version")),
}


def test_all_routes_with_ids_are_tested(site: Site) -> None:
    """A new route must be added to one of these lists, and to a test if it takes owned ids."""
    plain = {path for path in site.app.openapi()["paths"] if "{" not in path and not is_administration("POST", path)}
    assert plain == NAMED | NOBODYS


async def test_foreign_ids_are_not_found_on_any_route(stored: Stored) -> None:
    walked = []
    for method, path in routes(stored.site):
        if any(f"{{{name}" in path for name in TAKEN):
            continue
        url = path.format(**stored.ids)  # a KeyError means a new route, whose objects must be stored above
        for prefixed in {url, url.removeprefix("/v1")}:
            body = {"files": FORMS[path]} if path in FORMS else {"json": BODIES.get(path, {})}
            answer = await stored.ask(method, prefixed, **(body if method == "POST" else {}))
            assert answer.status_code == 404, f"{method} {prefixed}: {answer.status_code} {answer.text}"
            assert SECRET not in answer.text
            walked.append(prefixed)
    assert len(walked) >= 30
    # everything is still there
    for url in [f"/v1/chat/completions/{stored.ids['completion_id']}", f"/v1/responses/{stored.ids['response_id']}"]:
        assert (await stored.site.client.get(url, headers=stored.mine)).status_code == 200


async def test_administration_tells_nothing_of_what_there_is(stored: Stored) -> None:
    paths = [path for method, path in routes(stored.site) if method == "GET" and is_administration(method, path)]
    for path in paths:
        there, missing = [
            await stored.ask("GET", path.format(**ids)) for ids in (stored.ids, dict.fromkeys(stored.ids, "none"))
        ]
        assert (there.status_code, there.text) == (missing.status_code, missing.text) == (404, missing.text), path
    assert len(paths) >= 6


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/conversations",
        "/v1/files",
        "/v1/batches",
        f"/v1/conversations/search?query={SECRET}",
        "/chat/get/messages/",
    ],
)
async def test_lists_are_empty(stored: Stored, path: str) -> None:
    answer = await stored.ask("GET", path)
    assert (answer.status_code, answer.json()["data"]) == (200, [])
    assert (await stored.site.client.get(path, headers=stored.mine)).json()["data"] != []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/chat/completions?after={}", "completion_id"),
        ("/v1/conversations?after={}", "conversation_id"),
        ("/v1/files?after={}", "file_id"),
        ("/v1/batches?after={}", "batch_id"),
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


async def test_foreign_file_is_no_input_of_a_batch(stored: Stored) -> None:
    window = {"endpoint": "/v1/completions", "completion_window": "24h"}
    body = {"input_file_id": stored.ids["input_file_id"], **window}
    answer = await stored.ask("POST", "/v1/batches", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "input_file_id")


async def test_foreign_stream_cannot_be_resumed_or_stopped(stored: Stored) -> None:
    for seen in ("0", "5"):
        event = {"Last-Event-ID": f"{stored.ids['message_id']}:{seen}"}
        answer = await stored.ask("GET", "/chat/stream", params={"prompt": "-"}, headers=event)
        assert answer.status_code == 404
    answer = await stored.ask("GET", f"/v1/responses/{stored.ids['response_id']}", params={"stream": "true"})
    assert answer.status_code == 404
