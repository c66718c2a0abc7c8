"""The Responses API by the official client, through restarts, crashes and a second process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import Response
from pydantic import BaseModel

from tests.test_live.service import ENDLESS, SECONDS, Service, running, until

pytestmark = pytest.mark.live

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 40}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


@contextmanager
def client_of(service: Service) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0, timeout=SECONDS) as client:
        yield client


def ended(client: OpenAI, response_id: str) -> Response:
    def found() -> Response | None:
        response = client.responses.retrieve(response_id)
        return response if response.status not in ("queued", "in_progress") else None

    return until(found)


def test_a_stream_adds_up_to_the_plain_answer(client: OpenAI) -> None:
    asked: Any = {"input": "Tell me about lighthouses.", "temperature": 0, "max_output_tokens": 24}
    plain = client.responses.create(**asked)
    with client.responses.stream(model="default", **asked) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert last.type == "response.incomplete"
    assert deltas == plain.output_text == last.response.output_text != ""
    assert client.responses.retrieve(last.response.id).output_text == deltas


async def test_the_asynchronous_client_gets_the_same(async_client: AsyncOpenAI, client: OpenAI) -> None:
    asked: Any = {"input": "Tell me about lighthouses.", "temperature": 0, "max_output_tokens": 12}
    answer = await async_client.responses.create(**asked)
    assert answer.output_text == client.responses.create(**asked).output_text
    assert await async_client.responses.retrieve(answer.id) == answer
    await async_client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        await async_client.responses.retrieve(answer.id)


def test_a_tool_is_called_and_its_output_taken(client: OpenAI) -> None:
    first = client.responses.create(
        input="What is the weather in Paris?", tools=[WEATHER], tool_choice="required", temperature=0
    )
    (call,) = (item for item in first.output if item.type == "function_call")
    assert (call.name, call.status) == ("get_weather", "completed")
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny, 21 degrees"}
    second = client.responses.create(
        input=[output], previous_response_id=first.id, tools=[WEATHER], tool_choice="none", max_output_tokens=16
    )
    assert second.output_text
    (given,) = client.responses.input_items.list(second.id)
    assert (given.type, given.call_id) == ("function_call_output", call.call_id)  # type: ignore[union-attr]
    with client.responses.stream(
        model="default", input="What is the weather in Paris?", tools=[WEATHER], tool_choice="required", temperature=0
    ) as stream:
        arguments = "".join(event.delta for event in stream if event.type == "response.function_call_arguments.delta")
    assert arguments == call.arguments


def test_an_answer_is_parsed(client: OpenAI) -> None:
    class City(BaseModel):
        name: str
        is_capital: bool

    answer = client.responses.parse(
        input="Tell me about Paris: its name and whether it is a capital.", text_format=City, temperature=0
    )
    assert isinstance(answer.output_parsed, City)


def test_logprobs_are_of_the_text_and_tokens_are_counted(client: OpenAI) -> None:
    included: Any = ["message.output_text.logprobs"]
    answer = client.responses.create(input="Hi", include=included, top_logprobs=2, max_output_tokens=4)
    part: Any = answer.output[0].content[0]  # type: ignore[union-attr]
    assert "".join(each.token for each in part.logprobs) == answer.output_text
    assert {len(each.top_logprobs) for each in part.logprobs} == {2}
    counted = client.responses.input_tokens.count(input="Hi")
    assert answer.usage is not None
    assert counted.input_tokens == answer.usage.input_tokens


def test_a_prompt_that_is_too_long_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(input="one " * 9000, max_output_tokens=4)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")


async def test_what_was_said_is_known_after_a_restart(folder: Path, database_url: str) -> None:
    with running(folder, DATABASE__URL=database_url) as service, client_of(service) as client:
        first = client.responses.create(input="My name is Ada.", max_output_tokens=8)
        conversation = client.conversations.create()
        client.responses.create(input="Count with me: one", conversation=conversation.id, max_output_tokens=8)

    with running(folder, DATABASE__URL=database_url) as service, client_of(service) as client:
        assert client.responses.retrieve(first.id) == first
        second = client.responses.create(input="Who am I?", previous_response_id=first.id, max_output_tokens=8)
        fresh = client.responses.create(input="Who am I?", max_output_tokens=8)
        assert second.usage is not None
        assert fresh.usage is not None
        assert first.usage is not None
        assert second.usage.input_tokens > fresh.usage.input_tokens + first.usage.output_tokens
        client.responses.create(input="two", conversation=conversation.id, max_output_tokens=8)
        items: list[Any] = list(client.conversations.items.list(conversation.id, order="asc"))
        assert [item.role for item in items] == ["user", "assistant", "user", "assistant"]


async def test_a_background_answer_is_followed_and_stopped_from_another_process(
    folder: Path, database_url: str
) -> None:
    with (
        running(folder, DATABASE__URL=database_url) as one,
        running(folder, DATABASE__URL=database_url) as other,
        client_of(one) as writing,
        client_of(other) as reading,
    ):
        stream = writing.responses.create(input=ENDLESS, temperature=0, background=True, stream=True)
        seen = [next(stream) for _ in range(12)]
        stream.close()
        response_id = seen[0].response.id  # type: ignore[union-attr]
        rest = reading.responses.retrieve(response_id, stream=True, starting_after=seen[5].sequence_number)
        found = [next(rest) for _ in range(10)]
        assert found[:6] == seen[6:]
        assert reading.responses.cancel(response_id).status == "cancelled"
        found += list(rest)
        assert [event.sequence_number for event in found] == [*range(6, 6 + len(found))]
        last: Any = found[-1]
        assert (last.type, last.response.status) == ("response.incomplete", "cancelled")
        deltas = [event.delta for event in [*seen[:6], *found] if event.type == "response.output_text.delta"]
        assert "".join(deltas) == last.response.output_text
        again = writing.responses.retrieve(response_id, stream=True)
        assert list(again) == [*seen[:6], *found]
        assert until(lambda: one.gauge("num_requests_running") == 0)


async def test_a_background_answer_of_a_server_that_was_killed_goes_on(folder: Path, database_url: str) -> None:
    limit: dict[str, Any] = {"temperature": 0, "background": True, "max_output_tokens": 300}
    with running(folder, DATABASE__URL=database_url, ENGINE__MAX_NUM_SEQS="1") as service, client_of(service) as client:
        stream = client.responses.create(input=ENDLESS, stream=True, **limit)
        begun = next(stream).response.id  # type: ignore[union-attr]
        before = until(lambda: client.responses.retrieve(begun).output_text)
        waiting = client.responses.create(input=ENDLESS, **(limit | {"max_output_tokens": 8}))
        service.kill()

    with running(folder, DATABASE__URL=database_url) as service, client_of(service) as client:
        whole = ended(client, begun)
        assert whole.incomplete_details is not None
        assert whole.incomplete_details.reason == "max_output_tokens"
        assert whole.output_text.startswith(before)
        events = list(client.responses.retrieve(begun, stream=True))
        assert [event.sequence_number for event in events] == [*range(len(events))]
        assert (
            "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
        )
        last = events[-1]
        assert (last.type, last.response) == ("response.incomplete", whole)  # type: ignore[union-attr]
        assert list(client.responses.retrieve(begun, stream=True, starting_after=last.sequence_number)) == []
        assert ended(client, waiting.id).output_text


def test_a_background_answer_has_the_drains_time(folder: Path) -> None:
    with running(folder, SERVER__DRAIN_S="100") as service, client_of(service) as client:
        short = client.responses.create(input=ENDLESS, temperature=0, max_output_tokens=30, background=True)
        service.terminate()
        assert service.wait() in (0, -15)
    with running(folder, SERVER__DRAIN_S="1") as service, client_of(service) as client:
        finished = client.responses.retrieve(short.id)
        assert finished.incomplete_details is not None
        assert finished.incomplete_details.reason == "max_output_tokens"
        long = client.responses.create(input=ENDLESS, temperature=0, background=True)
        until(lambda: client.responses.retrieve(long.id).status == "in_progress")
        service.terminate()
        assert service.wait() in (0, -15)
    with running(folder) as service, client_of(service) as client:
        cut = client.responses.retrieve(long.id)
        assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "interrupted")  # type: ignore[union-attr]
        assert cut.output_text
        assert len(list(client.responses.retrieve(long.id, stream=True))) > 8
