"""The official client against the real service and the real models."""

import asyncio
import math

import openai
import pytest
import requests
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk

from tests.test_live.service import CHAT, ENDLESS, SECONDS, Service, until

pytestmark = pytest.mark.live

QUESTION = "Write a story about a lighthouse."


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))  # their length is 1


def told(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


# --- chat ---


def test_a_plain_answer_has_every_field(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="default", messages=user(QUESTION), temperature=0, max_tokens=12)
    (choice,) = answer.choices
    assert (answer.object, answer.model, choice.index, choice.finish_reason) == (
        "chat.completion",
        "default",
        0,
        "length",
    )
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert answer.usage
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer.system_fingerprint
    assert answer._request_id


def test_a_stream_is_the_plain_answer_in_pieces(client: OpenAI) -> None:
    asked = {"model": CHAT, "messages": user(QUESTION), "temperature": 0, "max_tokens": 24}
    plain = client.chat.completions.create(**asked)
    with client.chat.completions.create(**asked, stream=True) as stream:
        chunks = list(stream)
    assert told(chunks) == plain.choices[0].message.content
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    roles = [chunk.choices[0].delta.role for chunk in chunks]
    assert roles == ["assistant"] + [None] * (len(chunks) - 1)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


def test_usage_comes_in_a_last_chunk_of_its_own(client: OpenAI) -> None:
    with client.chat.completions.create(
        model=CHAT, messages=user(QUESTION), max_tokens=7, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *chunks, last = list(stream)
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks)
    assert last.choices == []
    assert last.usage
    assert last.usage.completion_tokens == 7


def test_the_stream_helper_adds_up_the_answer(client: OpenAI) -> None:
    # at its full stop: the helper takes an answer that ends at its length for a failure
    with client.chat.completions.stream(model=CHAT, messages=user(QUESTION), temperature=0, stop=".") as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert final.choices[0].message.role == "assistant"
    assert final.choices[0].message.content == "".join(deltas) != ""
    assert final.choices[0].finish_reason == "stop"


def test_raw_and_streaming_responses(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=CHAT, messages=user("Hello"), max_tokens=3)
    assert raw.headers["x-request-id"] == raw.parse()._request_id
    with client.chat.completions.with_streaming_response.create(
        model=CHAT, messages=user("Hello"), max_tokens=3, stream=True
    ) as response:
        lines = [line for line in response.iter_lines() if line and not line.startswith(":")]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


def test_a_seed_repeats_what_it_drew(client: OpenAI) -> None:
    def draw(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=CHAT, messages=user(QUESTION), seed=seed, temperature=1.2, top_p=0.9, max_completion_tokens=16
        )
        assert answer.usage
        assert answer.usage.completion_tokens <= 16
        return answer.choices[0].message.content

    assert draw(7) == draw(7) != draw(8)


def test_a_stop_sequence_ends_the_answer_and_is_not_in_it(client: OpenAI) -> None:
    asked = {"model": CHAT, "messages": user("Count: 1, 2, 3"), "temperature": 0, "max_tokens": 30}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    assert whole
    stop = whole[6:9]
    with client.chat.completions.create(**asked, stop=[stop], stream=True) as stream:
        chunks = list(stream)
    assert told(chunks) == whole[: whole.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/"])
def test_a_base_url_with_and_without_v1(service: Service, path: str) -> None:
    with OpenAI(base_url=service.url + path, api_key="unused") as client:
        answer = client.chat.completions.create(model="default", messages=user("Hello"), max_tokens=2)
        assert answer.choices[0].message.content
        assert client.embeddings.create(model="default", input="Hello").data[0].embedding
        assert client.models.list().data


def test_models_are_listed_and_found(client: OpenAI) -> None:
    ids = [model.id for model in client.models.list()]
    assert ids[0] == CHAT
    assert [client.models.retrieve(id).id for id in ids] == ids


# --- errors ---


def test_errors_are_the_exceptions_their_status_says(client: OpenAI) -> None:
    def refused(**asked: object) -> openai.APIStatusError:
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(**{"model": CHAT, "messages": user("Hello"), **asked})
        assert caught.value.request_id
        return caught.value

    cases = [
        (refused(temperature=3), openai.BadRequestError, "temperature", "invalid_value"),
        (refused(messages=[]), openai.BadRequestError, "messages", "invalid_value"),
        (refused(temperature=3, stream=True), openai.BadRequestError, "temperature", "invalid_value"),
        (refused(functions=[{"name": "f"}]), openai.BadRequestError, "functions", "unsupported_parameter"),
        (refused(logit_bias={"99999": 1}), openai.BadRequestError, "logit_bias", None),
        (refused(messages=user("sea " * 9000)), openai.BadRequestError, "messages", "context_length_exceeded"),
        (refused(model="gpt-4o", stream=True), openai.NotFoundError, "model", "model_not_found"),
        (refused(extra_body={"conversation": "conv_0"}), openai.NotFoundError, "conversation", "not_found"),
    ]
    for error, kind, param, code in cases:
        assert (type(error), error.param, error.code) == (kind, param, code)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_keys_are_asked_for(guarded: Service) -> None:
    with (
        OpenAI(base_url=guarded.url, api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert caught.value.code == "invalid_api_key"


# --- embeddings ---


def test_embeddings_are_the_same_in_both_encodings(client: OpenAI) -> None:
    packed = client.embeddings.create(model="all-MiniLM-L6-v2", input="A cat sat.")  # the client asks for base64
    plain = client.embeddings.create(model="all-MiniLM-L6-v2", input="A cat sat.", encoding_format="float")
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert math.hypot(*plain.data[0].embedding) == pytest.approx(1, abs=1e-3)
    assert packed.usage.prompt_tokens == packed.usage.total_tokens > 0


def test_close_meanings_are_close_and_order_is_kept(client: OpenAI) -> None:
    inputs = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose in March."]
    found = client.embeddings.create(model="default", input=inputs)
    assert [each.index for each in found.data] == [0, 1, 2]
    cat, kitten, rates = (each.embedding for each in found.data)
    assert cosine(cat, kitten) > cosine(cat, rates) + 0.3
    alone = client.embeddings.create(model="default", input=inputs[1])
    assert alone.data[0].embedding == pytest.approx(kitten, abs=0.02)


def test_fewer_dimensions_and_token_ids(client: OpenAI) -> None:
    short = client.embeddings.create(model="default", input=["cat", "dog"], dimensions=32)
    assert [len(each.embedding) for each in short.data] == [32, 32]
    assert math.hypot(*short.data[0].embedding) == pytest.approx(1, abs=1e-3)
    tokens = client.embeddings.create(model="default", input=[[4937], [3899, 4937]])
    assert [len(each.embedding) for each in tokens.data] == [384, 384]


# --- conversations ---


def test_a_conversation_is_in_front_of_the_next_turn(service: Service, client: OpenAI) -> None:
    first = service.ask("My name is Ada.", max_tokens=8)
    asked = {"model": CHAT, "messages": user("What is my name?"), "max_tokens": 8}
    without = client.chat.completions.create(**asked)
    answer = client.chat.completions.create(**asked, extra_body={"conversation": first["conversation_id"]})
    assert answer.usage
    assert without.usage
    assert answer.usage.prompt_tokens > without.usage.prompt_tokens
    assert answer.conversation == {"id": first["conversation_id"]}
    stored = service.messages(conversation_id=first["conversation_id"])
    assert [message["role"] for message in stored] == ["user", "assistant"] * 2
    said = [message["content"] for message in stored]
    assert said[:3] == ["My name is Ada.", first["response"], "What is my name?"]
    assert said[3] == answer.choices[0].message.content


# --- many at once, and readers who leave ---


async def test_eight_streams_at_once_are_all_whole(async_client: AsyncOpenAI) -> None:
    async def ask(nth: int) -> list[ChatCompletionChunk]:
        stream = await async_client.chat.completions.create(
            model=CHAT,
            messages=user(f"Tell me {nth + 2} things about the sea."),
            temperature=0,
            max_tokens=20,
            stream=True,
            stream_options={"include_usage": True},
        )
        async with stream:
            return [chunk async for chunk in stream]

    answers = await asyncio.gather(*(ask(nth) for nth in range(8)))
    assert len({chunks[0].id for chunks in answers}) == 8
    for chunks in answers:
        assert {chunk.id for chunk in chunks} == {chunks[0].id}
        *_, finish, usage = chunks
        assert finish.choices[0].finish_reason in ("stop", "length")
        assert usage.usage
        assert 0 < usage.usage.completion_tokens <= 20
        assert told(chunks)


async def test_async_plain_and_embeddings(async_client: AsyncOpenAI) -> None:
    answer, found = await asyncio.gather(
        async_client.chat.completions.create(model=CHAT, messages=user("Hello"), max_tokens=5),
        async_client.embeddings.create(model="default", input=["Hello"]),
    )
    assert answer.choices[0].message.content
    assert len(found.data[0].embedding) == 384


async def test_a_reader_who_leaves_takes_the_sequence_along(service: Service, async_client: AsyncOpenAI) -> None:
    stream = await async_client.chat.completions.create(
        model=CHAT, messages=user(ENDLESS), temperature=0, max_tokens=4000, stream=True
    )
    async with stream:
        await anext(aiter(stream))
        # the role is sent as soon as it is admitted, before it runs
        await asyncio.to_thread(until, lambda: service.gauge("num_requests_running") == 1)
    await asyncio.to_thread(until, lambda: service.gauge("num_requests_running") == 0)


def test_a_plain_caller_who_leaves_does_too(service: Service) -> None:
    asked = {"messages": user(ENDLESS), "temperature": 0, "max_tokens": 4000}
    with pytest.raises(requests.ReadTimeout):
        requests.post(f"{service.url}/v1/chat/completions", json=asked, timeout=(SECONDS, 1))
    until(lambda: service.gauge("num_requests_running") == 0)


def test_logprobs_of_a_stream_are_those_of_the_plain_answer(client: OpenAI) -> None:
    asked = {"model": CHAT, "messages": user(QUESTION), "temperature": 0, "max_tokens": 12, "logprobs": True}
    plain = client.chat.completions.create(**asked, top_logprobs=3).choices[0]
    with client.chat.completions.create(**asked, top_logprobs=3, stream=True) as stream:
        streamed = [token for chunk in stream for lp in [chunk.choices[0].logprobs] if lp for token in lp.content or []]
    assert plain.logprobs
    assert plain.logprobs.content
    assert [token.model_dump() for token in streamed] == [token.model_dump() for token in plain.logprobs.content]
    assert b"".join(bytes(token.bytes or []) for token in streamed).decode() == plain.message.content
    for token in streamed:
        assert token.token == token.top_logprobs[0].token  # greedy
        assert 0 < sum(math.exp(each.logprob) for each in token.top_logprobs) <= 1.0001


def test_several_choices_are_added_up_by_the_stream_helper(client: OpenAI) -> None:
    asked = {"model": CHAT, "messages": user(QUESTION), "seed": 3, "n": 3, "logprobs": True, "stop": [".", ","]}
    plain = client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked, extra_body={"return_token_ids": True}) as stream:
        final = stream.get_final_completion()
    assert [choice.index for choice in final.choices] == [0, 1, 2]
    assert [choice.message.content for choice in final.choices] == [each.message.content for each in plain.choices]
    assert [choice.message.role for choice in final.choices] == ["assistant"] * 3
    assert plain.usage
    assert plain.usage.completion_tokens == sum(len(each.message.model_extra["token_ids"]) for each in final.choices)


def test_fields_beyond_openais_are_readable(client: OpenAI) -> None:
    with client.chat.completions.create(
        model=CHAT,
        messages=user(QUESTION),
        max_tokens=4,
        metadata={"min_tokens": 4},
        stream=True,
        extra_body={"return_token_ids": True, "top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1},
    ) as stream:
        chunks = list(stream)
    times = [chunk.choices[0].arrival_time for chunk in chunks]
    assert times == sorted(times)
    assert sum(len(chunk.choices[0].delta.model_extra.get("token_ids", [])) for chunk in chunks) == 4
