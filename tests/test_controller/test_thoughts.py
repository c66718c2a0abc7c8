"""Thoughts of a response that the client shows, keeps sealed, and sends back."""

from typing import Any

import pytest
from openai import AsyncOpenAI
from sqlalchemy import text

from database.session import Database
from services.callers import ANYBODY
from services.chat.sealed import Seal
from tests.agents import apps
from tests.apps import NewSite, official
from tests.fakes import FakeEngine

TOOL: Any = {"type": "function", "name": "get_time", "parameters": {"type": "object"}, "strict": False}
CALL = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
SEALED: Any = ["reasoning.encrypted_content"]
SECRET = "the secret of this server"


@pytest.fixture
def engine() -> FakeEngine:
    engine = apps.engine(apps.THINKS)
    engine.script = ("<think>", "They ask.\n\n", "Look at the clock.", "</think>", CALL)
    return engine


@pytest.fixture
async def client(new_server: NewSite) -> Any:
    site = await new_server(server={"secret": SECRET})
    async with official(site) as client:
        yield client


async def rows(url: str) -> dict[str, int]:
    database, tables = Database(url), ("conversations", "turns", "items", "stream_batches", "idempotency_keys")
    async with database.read() as session:
        found = {table: await session.scalar(text(f"SELECT count(*) FROM {table}")) for table in tables}
    await database.close()
    return found


async def test_a_loop_whose_state_is_the_clients_alone(
    client: AsyncOpenAI, engine: FakeEngine, sqlite_url: str
) -> None:
    """As agents have it: nothing is stored here, and what was thought comes back sealed, without a word beside it."""
    given: list[Any] = [{"role": "user", "content": "How late is it?"}]
    fields: dict[str, Any] = {"model": "fake-chat", "store": False, "include": SEALED, "tools": [TOOL]}
    first = await client.responses.create(input=given, **fields)
    thought, call = first.output
    assert (thought.type, call.type) == ("reasoning", "function_call")
    sealed = thought.to_dict()["encrypted_content"]
    assert "clock" not in str(sealed)
    given.append({"type": "reasoning", "id": thought.id, "summary": [], "encrypted_content": sealed})
    given.append(call.to_dict())
    given.append({"type": "function_call_output", "call_id": call.to_dict()["call_id"], "output": "noon"})
    engine.script = ("Noon.",)
    raw = await client.responses.with_raw_response.create(input=given, **fields)
    assert raw.parse().output_text == "Noon."
    assert "x-parley-ignored" not in raw.headers
    assert "<think>They ask.\n\nLook at the clock.</think>" in engine.prompts[-1]
    assert not any((await rows(sqlite_url)).values())


async def test_a_summary_is_the_thought(client: AsyncOpenAI) -> None:
    stream = await client.responses.create(input="Hi", reasoning={"summary": "auto"}, stream=True, include=SEALED)
    events = [event async for event in stream]
    kinds = [each.type for each in events if "reasoning" in each.type]
    assert kinds == [
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
    ]
    last: Any = events[-1]
    thought = last.response.output[0]
    assert [part.text for part in thought.summary] == ["They ask.\n\nLook at the clock."]
    assert last.response.reasoning.summary == "auto"
    assert Seal(SECRET.encode(), ANYBODY).open(thought.encrypted_content, "reasoning") == thought.summary[0].text


async def test_a_stored_one_is_found_as_it_was_answered(client: AsyncOpenAI) -> None:
    fields: Any = {"summary": "concise"}
    answer = await client.responses.create(input="Hi", reasoning=fields)
    assert [part["text"] for part in answer.output[0].to_dict()["summary"]] == ["They ask."]  # type: ignore[attr-defined]
    assert await client.responses.retrieve(answer.id) == answer
    again = (await client.responses.retrieve(answer.id, include=SEALED)).output[0].to_dict()
    sealed = again.pop("encrypted_content")
    assert again == answer.output[0].to_dict()
    found = Seal(SECRET.encode(), ANYBODY).open(str(sealed), "reasoning")
    assert found == "They ask.\n\nLook at the clock."


async def test_the_sealed_thought_is_read_also_by_what_goes_on_from_a_stored_answer(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    sealed = Seal(SECRET.encode(), ANYBODY).close("I know this.", "reasoning")
    given: Any = [
        {"role": "user", "content": "Hi"},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "I"}]}
        | {"encrypted_content": sealed},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And?"},
    ]
    engine.script = ("So.",)
    answer = await client.responses.create(input=given)
    await client.responses.create(input="Go on", previous_response_id=answer.id)
    assert all("<think>I know this.</think>Hello." in prompt for prompt in engine.prompts)


@pytest.mark.parametrize("of", [Seal(SECRET.encode(), "another"), Seal(b"another secret", ANYBODY), None])
async def test_what_was_sealed_elsewhere_is_left_aside_and_named(
    client: AsyncOpenAI, engine: FakeEngine, of: Seal | None
) -> None:
    sealed = of.close("Secret.", "reasoning") if of else "gAAAA"
    given: Any = [
        {"role": "user", "content": "Hi"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": sealed},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And?"},
    ]
    raw = await client.responses.with_raw_response.create(input=given)
    assert raw.headers["x-parley-ignored"] == "input.1.encrypted_content"
    assert "think" not in engine.prompts[-1]
