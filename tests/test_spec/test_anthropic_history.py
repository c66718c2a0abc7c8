"""Valid history of Anthropic's clients is never refused: it reaches the model, or is named."""

import base64
from typing import Any

import pytest

from tests.apps import Site
from tests.fakes import FakeEngine
from tests.pdfs import pdf
from tests.pictures import FakeReader, encoded

PNG = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(encoded()).decode()}
USE = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def assistant(*content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(content)}


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


async def post(site: Site, *messages: dict[str, Any], **more: Any) -> Any:
    body = {"model": "default", "max_tokens": 9, "messages": [*messages], **more}
    return await site.client.post("/v1/messages?beta=true", json=body)


async def prompt(site: Site, engine: FakeEngine, *messages: dict[str, Any], **more: Any) -> str:
    answer = await post(site, *messages, **more)
    assert answer.status_code == 200, answer.text
    return engine.prompts[-1]


async def refusal(site: Site, *messages: dict[str, Any], **more: Any) -> str:
    answer = await post(site, *messages, **more)
    assert answer.status_code == 400, answer.text
    message: str = answer.json()["error"]["message"]
    return message


class TestDocuments:
    @pytest.mark.parametrize(
        "source",
        [
            {"type": "text", "media_type": "text/plain", "data": "The river is called Lorn."},
            {"type": "content", "content": "The river is called Lorn."},
            {"type": "content", "content": [text("The river "), text("is called Lorn.")]},
        ],
        ids=["text", "string", "blocks"],
    )
    async def test_their_text_and_title_are_in_the_prompt(
        self, site: Site, engine: FakeEngine, source: dict[str, Any]
    ) -> None:
        document = {"type": "document", "source": source, "title": "Rivers", "context": "of the north"}
        rendered = await prompt(site, engine, user(document, text("Which river?")))
        assert rendered.startswith(
            "<user>Document: Rivers\n\nof the north\n\nThe river is called Lorn.\n\nWhich river?"
        )

    async def test_of_a_tools_result(self, site: Site, engine: FakeEngine) -> None:
        document = {"type": "document", "source": {"type": "text", "data": "Lorn"}}
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [document]}
        assert "Lorn" in await prompt(site, engine, user(text("hi")), assistant(USE), user(result))

    @pytest.mark.parametrize(
        "source",
        [
            {"type": "base64", "media_type": "application/pdf", "data": "/wA="},
            {"type": "url", "url": "http://example.org/a.pdf"},
        ],
        ids=lambda source: source["type"],
    )
    async def test_what_cannot_be_read_is_refused_by_its_name(self, site: Site, source: dict[str, Any]) -> None:
        message = await refusal(site, user(text("hi"), {"type": "document", "source": source}), system="s")
        assert "messages.0.content.1" in message

    async def test_pdfs_are_read(self, site: Site, engine: FakeEngine) -> None:
        source = {"type": "base64", "media_type": "application/pdf", "data": base64.b64encode(pdf("Lorn")).decode()}
        document = {"type": "document", "title": "Rivers", "context": "of the north", "source": source}
        rendered = await prompt(site, engine, user(document, text("Which river?")))
        assert rendered.startswith("<user>of the north\n\nFile: Rivers\n\nLorn\n\nWhich river?")

    async def test_of_uploaded_files(self, site: Site, engine: FakeEngine) -> None:
        form: Any = {"files": {"file": ("a.txt", b"Lorn")}, "data": {"purpose": "user_data"}}
        made = (await site.client.post("/v1/files", **form)).json()
        document = {"type": "document", "source": {"type": "file", "file_id": made["id"]}}
        assert "File: a.txt\n\nLorn" in await prompt(site, engine, user(document, text("Which river?")))

    async def test_search_results_are_read(self, site: Site, engine: FakeEngine) -> None:
        found = {"type": "search_result", "source": "http://a", "title": "T", "content": [text("Lorn")]}
        rendered = await prompt(site, engine, user({**found, "citations": {"enabled": True}}, text("Which?")))
        assert rendered.startswith("<user>T\nhttp://a\n\nLorn\n\nWhich?")


class TestOthersBlocks:
    async def test_citations_are_taken(self, site: Site, engine: FakeEngine) -> None:
        cited = text("Lorn", citations=[{"type": "char_location", "cited_text": "x"}])
        assert "Lorn" in await prompt(site, engine, user(text("hi")), assistant(cited), user(text("go on")))

    @pytest.mark.parametrize("signature", [{}, {"signature": "unsigned"}, {"signature": "EqQBCgIYAhIM"}], ids=str)
    async def test_thoughts_of_any_signature_are_read(
        self, site: Site, engine: FakeEngine, signature: dict[str, str]
    ) -> None:
        thought = {"type": "thinking", "thinking": "hm", **signature}
        await prompt(site, engine, user(text("hi")), assistant(thought, text("a")), user(text("b")))

    async def test_server_tool_results_become_text(self, site: Site, engine: FakeEngine) -> None:
        use = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "rivers"}}
        found = {"type": "web_search_result", "title": "Lorn", "url": "http://a", "encrypted_content": "sealed"}
        result = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [found]}
        rendered = await prompt(site, engine, user(text("hi")), assistant(use, result, text("It is.")), user(text("b")))
        assert rendered.index("rivers") < rendered.index("http://a") < rendered.index("It is.")
        assert "sealed" not in rendered

    @pytest.mark.parametrize(
        "result",
        [
            {"type": "web_search_tool_result", "content": {"type": "error", "error_code": "Lorn"}},
            {"type": "code_execution_tool_result", "content": {"type": "x", "stdout": "Lorn", "content": []}},
            {"type": "mcp_tool_result", "content": [text("Lorn")], "is_error": True},
            {"type": "tool_search_tool_result", "content": {"tool_references": [{"tool_name": "Lorn"}]}},
        ],
        ids=lambda result: result["type"],
    )
    async def test_whatever_it_returned(self, site: Site, engine: FakeEngine, result: dict[str, Any]) -> None:
        use = {"type": "mcp_tool_use", "id": "t_1", "name": "f", "server_name": "s", "input": {}}
        last = {**result, "tool_use_id": "t_1"}
        assert "Lorn" in await prompt(site, engine, user(text("hi")), assistant(use, last), user(text("b")))
        assert "Lorn" in await prompt(site, engine, user(text("hi")), assistant(last), user(text("b")))

    async def test_found_tools_are_listed(self, site: Site, engine: FakeEngine) -> None:
        found = {"type": "tool_reference", "tool_name": "lookup_2"}
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [found]}
        assert "lookup_2" in await prompt(site, engine, user(text("hi")), assistant(USE), user(result))

    async def test_a_summary_is_read(self, site: Site, engine: FakeEngine) -> None:
        summary = {"type": "compaction", "content": "They spoke of Lorn."}
        assert "Lorn" in await prompt(site, engine, user(text("hi")), assistant(summary), user(text("b")))

    async def test_the_system_may_speak_in_between(self, site: Site, engine: FakeEngine) -> None:
        rendered = await prompt(site, engine, user(text("hi")), {"role": "system", "content": "Be brief."})
        assert "<system>Be brief." in rendered


RESULT: dict[str, Any] = {
    "type": "tool_result",
    "tool_use_id": "toolu_1",
    "content": [text("a picture"), {"type": "image", "source": PNG}],
}


class TestImagesOfTools:
    async def test_reach_models_that_see(self, site: Site, engine: FakeEngine) -> None:
        engine.images = FakeReader()
        rendered = await prompt(site, engine, user(text("hi")), assistant(USE), user(RESULT), system="s")
        assert len(engine.jobs[0].images) == 1
        assert "a picture" in rendered

    async def test_are_refused_where_they_stand_because_of_the_model(self, site: Site) -> None:
        message = await refusal(site, user(text("hi")), assistant(USE), user(text("b"), RESULT), system="s")
        assert message == "'messages.2.content.1.content.1' is an image, and this model takes text only"

    async def test_may_be_uploaded_files(self, site: Site, engine: FakeEngine) -> None:
        engine.images = FakeReader()
        form: Any = {"files": {"file": ("a.png", encoded())}, "data": {"purpose": "vision"}}
        made = (await site.client.post("/v1/files", **form)).json()
        image = {"type": "image", "source": {"type": "file", "file_id": made["id"]}}
        assert "[XXXXXX]" in await prompt(site, engine, user(image))
