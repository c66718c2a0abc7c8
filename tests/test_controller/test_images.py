"""Image parts over HTTP, with an engine that sees without a model."""

from typing import Any

import pytest

from services.engine.base import Job
from services.errors import Overloaded
from services.fetch_service import Fetcher
from tests.apps import MODEL, NewSite, Site
from tests.fakes import FakeEngine, FakeStream
from tests.pictures import RED, FakeReader, data_url, encoded, part

HELLO = {"type": "text", "text": "What is it?"}


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine("red")
    engine.images = FakeReader()
    return engine


async def send(site: Site, *content: dict[str, Any], **fields: Any) -> Any:
    body = {"model": MODEL, "messages": [{"role": "user", "content": [*content]}], **fields}
    return await site.client.post("/v1/chat/completions", json=body)


async def refusal(site: Site, *content: dict[str, Any]) -> dict[str, Any]:
    answer = await send(site, *content)
    assert answer.status_code == 400
    error: dict[str, Any] = answer.json()["error"]
    return error


@pytest.mark.parametrize("stream", [False, True])
async def test_an_image_is_answered(site: Site, engine: FakeEngine, stream: bool) -> None:
    answer = await send(site, HELLO, RED, stream=stream)

    assert answer.status_code == 200
    (job,) = engine.jobs
    assert engine.prompts == ["<user>What is it?[XXXXXX]\n\n<assistant>\n"]
    assert [job.prompt[at] for at in job.images[0].positions] == [ord("X")] * 6


async def test_its_tokens_count(site: Site, engine: FakeEngine) -> None:
    answer = (await send(site, HELLO, RED)).json()
    assert answer["usage"]["prompt_tokens"] == len(engine.jobs[0].prompt)


async def test_a_conversation_keeps_its_images(site: Site, engine: FakeEngine) -> None:
    first = (await site.client.post("/chat/new/message/", json={"prompt": "Hello"})).json()
    conversation = first["conversation_id"]

    assert (await send(site, HELLO, RED, conversation=conversation)).status_code == 200
    assert (await send(site, {"type": "text", "text": "And now?"}, conversation=conversation)).status_code == 200

    assert engine.prompts[-1].count("[XXXXXX]") == 1
    stored = (await site.client.get("/chat/get/messages/", params={"conversation_id": conversation})).json()
    image = {"type": "image_url", "image_url": {"detail": "auto"} | RED["image_url"]}
    assert [HELLO, image] in [each["content"] for each in stored["data"]]


async def test_images_of_a_conversation_are_refused_in_its_name(site: Site, engine: FakeEngine) -> None:
    conversation = (await site.client.post("/chat/new/message/", json={"prompt": "Hello"})).json()["conversation_id"]
    await send(site, RED, conversation=conversation)
    engine.images = None

    answer = await send(site, HELLO, conversation=conversation)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "conversation")


async def test_a_text_only_model_refuses_images(site: Site, engine: FakeEngine) -> None:
    engine.images = None
    error = await refusal(site, HELLO, RED)
    assert error["param"] == "messages.0.content.1.image_url.url"
    assert error["code"] == "unsupported_parameter"
    assert "text only" in error["message"]


@pytest.mark.parametrize(
    "url",
    ["data:image/png;base64,aGVsbG8=", "data:image/png;base64,?", "hello", "", "https://images.example/secret.png"],
)
async def test_bad_images_are_named_and_not_repeated(site: Site, url: str) -> None:
    error = await refusal(site, HELLO, part(url))
    assert error["param"] == "messages.0.content.1.image_url.url"
    assert not url or url not in error["message"]


async def test_the_first_one_at_fault(site: Site) -> None:
    error = await refusal(site, RED, part("data:image/gif;base64,aGVsbG8="), part("data:?"))
    assert error["param"] == "messages.0.content.1.image_url.url"


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "image_url"},
        {"type": "image_url", "image_url": "data:"},
        {"type": "image_url", "image_url": {"detail": "low"}},
        part("data:", detail="best"),
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "video_url"},
    ],
    ids=str,
)
async def test_other_parts_are_refused(site: Site, wrong: dict[str, Any]) -> None:
    error = await refusal(site, HELLO, wrong)
    assert error["param"].startswith("messages.0.content.1")
    assert error["code"] == "invalid_value"


async def test_parts_of_the_contract_are_refused_by_name(site: Site) -> None:
    assert "'input_audio' is not supported" in (await refusal(site, {"type": "input_audio"}))["message"]


@pytest.mark.parametrize("role", ["system", "developer", "assistant"])
async def test_images_are_the_users(site: Site, role: str) -> None:
    message = {"role": role, "content": [RED]}
    answer = await site.client.post("/v1/chat/completions", json={"model": MODEL, "messages": [message]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages.0.content")


async def test_limits_of_the_settings(new_site: NewSite) -> None:
    site = await new_site(images={"max_images": 2, "max_bytes": 2048, "max_pixels": 1024})

    assert (await send(site, RED, RED)).status_code == 200
    assert (await refusal(site, RED, RED, RED))["param"] == "messages.0.content.2.image_url.url"
    assert "pixels" in (await refusal(site, part(data_url(encoded(size=(64, 64))))))["message"]
    assert "bytes" in (await refusal(site, part(data_url(bytes(4096)))))["message"]


async def test_nothing_is_fetched_from_inside(new_site: NewSite) -> None:
    site = await new_site(images={"hosts": ["*"]})
    error = await refusal(site, part("http://127.0.0.1/image.png"))
    assert (error["param"], "public" in error["message"]) == ("messages.0.content.0.image_url.url", True)


RESPONSES: list[dict[str, Any]] = [
    {"truncation": "auto"},
    {"context_management": [{"type": "compaction"}]},
    {"context_management": [{"type": "compaction", "compact_threshold": 1_000}], "truncation": "auto"},
    {"context_management": [{"type": "compaction"}], "truncation": "auto", "background": True},
]


@pytest.mark.parametrize("fields", RESPONSES)
async def test_one_is_fetched_once_however_often_its_prompt_is_prepared(
    new_site: NewSite, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """To be counted, to be truncated or compacted, and whenever a background response is tried again."""
    fetched: list[str] = []

    async def get(fetcher: Fetcher, url: str, param: str) -> bytes:
        fetched.append(url)
        return encoded()

    monkeypatch.setattr(Fetcher, "get", get)
    submit, refused = engine.submit, iter([bool(fields.get("background"))] * 2)

    async def sometimes(job: Job) -> FakeStream:
        if next(refused, False):
            raise Overloaded("full", retry_after=0)
        return await submit(job)

    monkeypatch.setattr(engine, "submit", sometimes)
    site = await new_site(images={"hosts": ["*"]})
    image = {"type": "input_image", "image_url": "https://images.example/red.png"}
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello. " * 150}]
    body = {"input": [*talk, {"role": "user", "content": [image, image | {"detail": "low"}]}], "stream": True}
    answer = await site.client.post("/v1/responses", json=body | fields)

    assert '"status":"completed"' in answer.text
    assert len(engine.jobs[-1].images) == 2
    assert fetched == [image["image_url"]] * 2


async def test_a_text_with_the_placeholder_in_it(site: Site) -> None:
    assert (await refusal(site, {"type": "text", "text": "me@home"}, RED))["param"] == "messages"


async def test_a_prompt_with_images_is_not_truncated(site: Site) -> None:
    answer = await send(site, HELLO, RED, truncate_prompt_tokens=5)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "truncate_prompt_tokens")
    assert (await send(site, HELLO, RED, truncate_prompt_tokens=500)).status_code == 200


CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


async def ask_about_results(site: Site, *after: dict[str, Any]) -> Any:
    """Two results of tools, the second of which is an image."""
    calls = [CALL, {**CALL, "id": "call_2"}]
    messages = [
        {"role": "user", "content": "Look"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "seen: "}, RED]},
        {"role": "tool", "tool_call_id": "call_2", "content": "dark"},
        *after,
    ]
    return await site.client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages})


async def test_an_image_that_a_tool_returns_is_seen(site: Site, engine: FakeEngine) -> None:
    answer = await ask_about_results(site)
    assert answer.status_code == 200, answer.text
    assert len(engine.jobs[0].images) == 1
    assert engine.prompts[0].endswith("<user>[XXXXXX]\n\n<assistant>\n")
    assert "seen: " in engine.prompts[0]


async def test_a_tools_image_comes_before_the_next_user_text(site: Site, engine: FakeEngine) -> None:
    assert (await ask_about_results(site, {"role": "user", "content": "And now?"})).status_code == 200
    assert engine.prompts[0].endswith("<user>[XXXXXX]\nAnd now?\n<assistant>\n")


async def test_a_text_only_model_refuses_a_tools_image(site: Site, engine: FakeEngine) -> None:
    engine.images = None
    answer = await ask_about_results(site)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "messages.2.content.1.image_url.url")
    assert "this model takes text only" in error["message"]
