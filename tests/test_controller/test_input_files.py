"""Files in messages, by their ids and by their data."""

import base64
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from tests.apps import MODEL, NewSite, Site, post, refusal
from tests.fakes import FakeEngine
from tests.pdfs import encrypted, pdf
from tests.pictures import FakeReader
from tests.pictures import encoded as picture

QUESTION = "Which river?"
RIVERS = {"rivers.md": b"# Lorn", "rivers.csv": b"name\nLorn", "rivers.json": b'"Lorn"', "rivers.pdf": pdf("Lorn")}


def data_url(data: bytes, kind: str = "application/pdf") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def chat_file(**file: str) -> Any:
    return [{"role": "user", "content": [{"type": "file", "file": file}, {"type": "text", "text": QUESTION}]}]


def response_file(**file: str) -> Any:
    return [{"role": "user", "content": [{"type": "input_file", **file}, {"type": "input_text", "text": QUESTION}]}]


@pytest.mark.parametrize("name", RIVERS)
async def test_a_file_stands_in_the_prompt_with_its_name(openai: AsyncOpenAI, engine: FakeEngine, name: str) -> None:
    file = await openai.files.create(file=(name, RIVERS[name]), purpose="user_data")
    await openai.chat.completions.create(model=MODEL, messages=chat_file(file_id=file.id))
    await openai.responses.create(model=MODEL, input=response_file(file_id=file.id))
    text = "Lorn" if name.endswith("pdf") else RIVERS[name].decode()
    assert engine.prompts == [f"<user>File: {name}\n\n{text}\n\n{QUESTION}\n<assistant>\n"] * 2


@pytest.mark.parametrize("data", [data_url(RIVERS["rivers.pdf"]), base64.b64encode(b"Lorn").decode()])
async def test_its_data_may_be_in_the_message(openai: AsyncOpenAI, engine: FakeEngine, data: str) -> None:
    await openai.chat.completions.create(model=MODEL, messages=chat_file(file_data=data, filename="a\nb.pdf"))
    await openai.responses.create(model=MODEL, input=response_file(file_data=data, filename="a\nb.pdf"))
    assert engine.prompts == [f"<user>File: a b.pdf\n\nLorn\n\n{QUESTION}\n<assistant>\n"] * 2


async def test_a_conversation_keeps_the_reference(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    file = await openai.files.create(file=("a.txt", b"Lorn"), purpose="user_data")
    conversation = await openai.conversations.create()
    given = response_file(file_id=file.id)
    await openai.responses.create(model=MODEL, conversation=conversation.id, input=given)
    listed = [each.to_dict() async for each in openai.conversations.items.list(conversation.id, order="asc")]
    assert listed[0]["content"][0] == {"type": "input_file", "file_id": file.id}  # type: ignore[index]

    await openai.responses.create(model=MODEL, conversation=conversation.id, input="And?")
    assert engine.prompts[1].startswith("<user>File: a.txt\n\nLorn\n\n")

    await openai.files.delete(file.id)
    with pytest.raises(NotFoundError) as refused:
        await openai.responses.create(model=MODEL, conversation=conversation.id, input="And?")
    assert (refused.value.param, file.id in refused.value.message) == ("input", True)


async def test_a_stored_completion_keeps_the_reference(openai: AsyncOpenAI) -> None:
    file = await openai.files.create(file=("a.txt", b"Lorn"), purpose="user_data")
    made = await openai.chat.completions.create(model=MODEL, messages=chat_file(file_id=file.id), store=True)
    (message,) = [each async for each in openai.chat.completions.messages.list(made.id)]
    part: Any = (message.content_parts or [])[0]
    assert part.model_dump(warnings=False, exclude_none=True) == {"type": "file", "file": {"file_id": file.id}}


async def test_the_tokens_of_files_count(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    file = await openai.files.create(file=("a.txt", b"Lorn"), purpose="user_data")
    given = response_file(file_id=file.id)
    answer = await openai.responses.create(model=MODEL, input=given)
    counted = await openai.responses.input_tokens.count(model=MODEL, input=given)
    assert answer.usage is not None
    assert answer.usage.input_tokens == counted.input_tokens == len(engine.jobs[0].prompt)


async def test_an_image_by_its_file(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    engine.images = FakeReader()
    file = await openai.files.create(file=("a.png", picture()), purpose="vision")
    image: Any = [{"role": "user", "content": [{"type": "input_image", "file_id": file.id, "detail": "low"}]}]
    await openai.responses.create(model=MODEL, input=image)
    assert engine.prompts == ["<user>[XXXXXX]\n\n<assistant>\n"]


async def test_a_tool_may_return_a_file(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    call: Any = {"type": "function_call", "call_id": "c", "name": "find", "arguments": "{}"}
    data = base64.b64encode(b"Lorn").decode()
    output: Any = {
        "type": "function_call_output",
        "call_id": "c",
        "output": [{"type": "input_file", "file_data": data}],
    }
    await openai.responses.create(model=MODEL, input=[{"role": "user", "content": "Find"}, call, output])
    assert "File: unnamed\n\nLorn" in engine.prompts[0]


class TestRefusals:
    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b"\xff\xfe", "neither a PDF nor text in UTF-8"),
            (encrypted(pdf("Lorn"), "secret"), "needs a password"),
            (b"%PDF-1.7", "broken"),
        ],
        ids=["not UTF-8", "encrypted", "broken"],
    )
    async def test_bad_files_are_named(self, openai: AsyncOpenAI, data: bytes, why: str) -> None:
        file = await openai.files.create(file=("a.pdf", data), purpose="user_data")
        for source in ({"file_id": file.id}, {"file_data": data_url(data)}):
            with pytest.raises(BadRequestError, match=why) as refused:
                await openai.chat.completions.create(model=MODEL, messages=chat_file(**source))
            assert refused.value.param == f"messages.0.content.0.file.{next(iter(source))}"
            with pytest.raises(BadRequestError, match=why) as refused:
                await openai.responses.create(model=MODEL, input=response_file(**source))
            assert refused.value.param == "input"

    async def test_a_text_longer_than_the_context(self, openai: AsyncOpenAI, engine: FakeEngine) -> None:
        file = await openai.files.create(file=("a.txt", b"Lorn " * engine.max_length), purpose="user_data")
        with pytest.raises(BadRequestError) as refused:
            await openai.chat.completions.create(model=MODEL, messages=chat_file(file_id=file.id))
        assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")

    @pytest.mark.parametrize("source", [{"file_data": "?"}, {"file_data": "data:text/plain,Lorn"}, {"file_id": ""}])
    async def test_of_what_is_no_file(self, site: Site, source: dict[str, str]) -> None:
        answer = await site.client.post("/v1/chat/completions", json={"model": MODEL, "messages": chat_file(**source)})
        assert answer.status_code == (404 if "file_id" in source else 400)
        assert answer.json()["error"]["param"] == f"messages.0.content.0.file.{next(iter(source))}"

    @pytest.mark.parametrize("source", [{}, {"filename": "a"}, {"file_id": "a", "file_data": "b"}, {"file_id": 1}])
    async def test_a_file_has_one_source(self, site: Site, source: dict[str, Any]) -> None:
        param = await refusal(site, "/v1/chat/completions", model=MODEL, messages=chat_file(**source))
        assert param is not None
        assert param.startswith("messages.0.content.0.file")
        assert (await refusal(site, "/v1/responses", model=MODEL, input=response_file(**source))) is not None

    async def test_files_are_not_the_assistants(self, site: Site) -> None:
        messages = [{"role": "assistant", "content": chat_file(file_id="file-1")[0]["content"]}]
        assert await refusal(site, "/v1/chat/completions", model=MODEL, messages=messages) == "messages.0.content"

    async def test_nothing_is_fetched_unless_it_is_allowed(self, site: Site) -> None:
        source = {"file_url": "https://files.example/a.pdf"}
        param = await refusal(site, "/v1/chat/completions", model=MODEL, messages=chat_file(**source))
        assert param == "messages.0.content.0.file.file_url"

    async def test_nothing_is_fetched_from_inside(self, new_site: NewSite) -> None:
        site = await new_site(images={"hosts": ["*"]})
        body = {"model": MODEL, "input": response_file(file_url="http://127.0.0.1/a.pdf")}
        answer = await site.client.post("/v1/responses", json=body)
        assert (answer.status_code, "public" in answer.json()["error"]["message"]) == (400, True)

    async def test_large_files(self, new_site: NewSite, tmp_path: Path) -> None:
        site = await new_site(files={"folder": tmp_path / "files", "max_input_bytes": 1024})
        form = {"files": {"file": ("a", b"x" * 1025)}, "data": {"purpose": "user_data"}}
        file_id = (await site.client.post("/v1/files", **form)).json()["id"]  # type: ignore[arg-type]
        for source in ({"file_id": file_id}, {"file_data": data_url(b"x" * 2048)}):
            param = await refusal(site, "/v1/chat/completions", model=MODEL, messages=chat_file(**source))
            assert param == f"messages.0.content.0.file.{next(iter(source))}"

    async def test_many_files(self, site: Site) -> None:
        file = {"type": "file", "file": {"file_data": "TG9ybg=="}}
        messages = [{"role": "user", "content": [file] * 65}]
        param = await refusal(site, "/v1/chat/completions", model=MODEL, messages=messages)
        assert param == "messages.0.content.64.file.file_data"


class TestAnotherProject:
    @pytest.fixture
    async def site(self, new_site: NewSite) -> Site:
        return await new_site(api_keys="mine,yours")

    async def test_has_no_such_file(self, site: Site) -> None:
        """Its id says no more than one that nobody has."""
        form = {"files": {"file": ("a", b"Lorn")}, "data": {"purpose": "user_data"}}
        made = await site.client.post("/v1/files", **form, headers={"Authorization": "Bearer mine"})  # type: ignore[arg-type]
        answers = []
        for file_id in (made.json()["id"], "file-" + "0" * 32):
            body = {"model": MODEL, "messages": chat_file(file_id=file_id)}
            headers = {"Authorization": "Bearer yours"}
            answer = await site.client.post("/v1/chat/completions", json=body, headers=headers)
            answers.append((answer.status_code, answer.text.replace(file_id, "…")))
        assert answers[0] == answers[1]
        assert answers[0][0] == 404


async def test_a_compaction_reads_the_files(site: Site, engine: FakeEngine) -> None:
    data = base64.b64encode(b"Lorn").decode()
    given = [*response_file(file_data=data, filename="a.txt"), {"role": "assistant", "content": "Lorn"}]
    await post(site, "/v1/responses/compact", model=MODEL, input=given)
    assert "File: a.txt\n\nLorn" in engine.prompts[0]
