"""POST /v1/chat/completions on the wire, plain and streamed, and GET /chat."""

import asyncio
import json
import re
import threading
from typing import Any

import httpx2
import pytest
from openai.types.chat import ChatCompletionMessage

from app.common import sse
from schemas.sampling_schema import EffectiveSampling
from services.chat.request.prompt import UNSUPPORTED
from services.engine.base import SamplingParams
from services.errors import EngineFailed, GrammarStuck, Overloaded, PromptTooLong
from tests.apps import MODEL, NewSite, Site
from tests.fakes import FakeEngine, Pause

PATH = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}
NOT_STARTED = {"status": "not started", "message": "You need to start the service first."}
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])


async def send(
    site: Site, *, path: str = PATH, headers: dict[str, str] | None = None, **fields: Any
) -> httpx2.Response:
    return await site.client.post(path, json={**HI, **fields}, headers=headers)


def error(answer: httpx2.Response) -> dict[str, Any]:
    (name,) = answer.json()
    assert name == "error"
    found: dict[str, Any] = answer.json()["error"]
    assert list(found) == ["message", "type", "param", "code"]
    assert isinstance(found["message"], str)
    assert answer.headers["x-request-id"]
    return found


async def conversation(site: Site, prompt: str = "first") -> str:
    answer = await site.client.post("/chat/new/message/", json={"prompt": prompt})
    return str(answer.json()["conversation_id"])


async def stored(site: Site, conversation_id: str) -> list[tuple[str, str, str]]:
    """Once nothing of it is in progress any more."""
    while True:
        answer = await site.client.get("/chat/get/messages/", params={"conversation_id": conversation_id})
        found = [(each["role"], each["content"], each["status"]) for each in answer.json()["data"]]
        if all(status != "in_progress" for _, _, status in found):
            return found


def chunk(delta: str, reason: str = "null", rest: str = "") -> str:
    choice = f'{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{reason}}}'
    return f'data: {{HEAD,"choices":[{choice}],TAIL{rest}}}'


def transcript(answer: httpx2.Response) -> list[str]:
    """The blocks, each ended by an empty line, without what differs from answer to answer."""
    id_, created = re.findall(r'"id":"(chatcmpl-[0-9a-f]{32})".*?"created":(\d{10})', answer.text)[0]
    tail = re.findall(r'"system_fingerprint":"fp_[0-9a-f]{10}"', answer.text)[0]
    head = f'"id":"{id_}","object":"chat.completion.chunk","created":{created},"model":"{MODEL}"'
    text = re.sub(r',"arrival_time":[\d.e-]+', "", answer.text)
    *blocks, nothing = text.replace(head, "HEAD").replace(tail, "TAIL").split("\n\n")
    assert nothing == ""
    return blocks


class TestTranscript:
    async def test_stream_to_the_byte(self, site: Site) -> None:
        answer = await send(site, stream=True)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-accel-buffering"] == "no"
        assert transcript(answer) == [
            chunk('{"role":"assistant","content":"","refusal":null}'),
            chunk('{"content":"Hello"}'),
            chunk('{"content":", "}'),
            chunk('{"content":"world!"}'),
            chunk("{}", '"stop"'),
            "data: [DONE]",
        ]

    async def test_stream_with_usage_to_the_byte(self, site: Site, engine: FakeEngine) -> None:
        engine.script = ("你好",)
        answer = await send(site, stream=True, stream_options={"include_usage": True})
        assert transcript(answer) == [
            chunk('{"role":"assistant","content":"","refusal":null}', rest=',"usage":null'),
            chunk('{"content":"你好"}', rest=',"usage":null'),
            chunk("{}", '"stop"', rest=',"usage":null'),
            'data: {HEAD,"choices":[],TAIL,"usage":{"prompt_tokens":21,"completion_tokens":1,"total_tokens":22,'
            '"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}}',
            "data: [DONE]",
        ]

    async def test_plain_answer(self, site: Site) -> None:
        answer = await send(site)
        assert answer.status_code == 200
        body = answer.json()
        assert re.fullmatch("chatcmpl-[0-9a-f]{32}", body.pop("id"))
        assert isinstance(body.pop("created"), int)
        assert re.fullmatch("fp_[0-9a-f]{10}", body.pop("system_fingerprint"))
        assert body == {
            "object": "chat.completion",
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Hello, world!", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": 21,
                "completion_tokens": 3,
                "total_tokens": 24,
                "prompt_tokens_details": {"cached_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0},
            },
            "metadata": None,
            "conversation": None,
        }

    @BOTH
    async def test_same_without_v1(self, site: Site, stream: bool) -> None:
        answer = await send(site, path="/chat/completions", stream=stream)
        assert answer.status_code == 200
        assert "world!" in answer.text

    async def test_conversation_is_named_in_every_chunk(self, site: Site) -> None:
        id_ = await conversation(site)
        answer = await send(site, stream=True, conversation=id_)
        *chunks, done = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        assert [json.loads(chunk)["conversation"] for chunk in chunks] == [{"id": id_}] * 5
        assert done == "[DONE]"


class TestParameters:
    async def test_all_that_are_served(self, site: Site, engine: FakeEngine) -> None:
        fields = {"max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "seed": 7, "stop": "end", "user": "u"}
        assert (await send(site, model="default", **fields)).status_code == 200
        assert engine.jobs[0].sampling == SamplingParams(9, 0.5, 0.9, 5, 7, ("end",))

    @BOTH
    async def test_the_served_tier_is_reported(self, site: Site, engine: FakeEngine, stream: bool) -> None:
        answer = await send(site, stream=stream, service_tier="flex")
        lines = [line for line in answer.text.split("\n\n") if line.startswith(("{", "data: {"))]
        assert {'"service_tier":"flex"' in line for line in lines} == {True}
        assert engine.jobs[0].priority == 1
        assert "service_tier" not in (await send(site, stream=stream)).text
        assert (await send(site, stream=stream, service_tier="scale")).headers["x-parley-ignored"] == "service_tier"

    async def test_chunk_sizes_reveal_no_text(self, site: Site, engine: FakeEngine) -> None:
        engine.script = ("a", "a longer word", "你好")
        answer = await send(site, stream=True, stream_options={"include_obfuscation": True, "include_usage": True})
        *chunks, usage = [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]
        sizes = [len(re.sub(r'"usage":.*', "", line).encode()) for line in answer.text.split("\n\n")[:-3]]
        assert {size % 64 for size in sizes} == {sizes[0] % 64}
        assert len({*sizes[1:4]}) == 1
        assert all(isinstance(chunk["obfuscation"], str) for chunk in chunks)
        assert "obfuscation" not in usage
        assert '"obfuscation"' not in (await send(site, stream=True)).text

    @BOTH
    async def test_hints_are_taken(self, site: Site, stream: bool) -> None:
        hints = {"prompt_cache_key": "k", "safety_identifier": "s", "user": "u", "verbosity": "medium"}
        answer = await send(site, stream=stream, **hints)
        assert (answer.status_code, "x-parley-ignored" in answer.headers) == (200, False)
        assert error(await send(site, stream=stream, safety_identifier="s" * 129))["param"] == "safety_identifier"

    @BOTH
    async def test_unsupported_ones(self, site: Site, stream: bool) -> None:
        for name in UNSUPPORTED:
            refused = await send(site, stream=stream, **{name: "anything else"})
            assert refused.status_code == 400
            assert (error(refused)["param"], error(refused)["code"]) == (name, "unsupported_parameter")

    @BOTH
    async def test_unsupported_ones_that_ask_for_nothing(self, site: Site, stream: bool) -> None:
        for name, neutral in UNSUPPORTED.items():
            for value in (None, *neutral):
                accepted = await send(site, stream=stream, **{name: value})
                assert (accepted.status_code, "x-parley-ignored" in accepted.headers) == (200, False), name

    @BOTH
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"temperature": 2.1}, "temperature"),
            ({"temperature": -0.1}, "temperature"),
            ({"temperature": "hot"}, "temperature"),
            ({"top_p": 0}, "top_p"),
            ({"top_p": 1.1}, "top_p"),
            ({"top_k": -2}, "top_k"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_completion_tokens": 0}, "max_completion_tokens"),
            ({"max_tokens": 1.5}, "max_tokens"),
            ({"seed": 2**63}, "seed"),
            ({"seed": -(2**63) - 1}, "seed"),
            ({"max_tokens": 2**64}, "max_tokens"),
            ({"max_tokens": 1e300}, "max_tokens"),
            ({"top_k": 1e19}, "top_k"),
            ({"min_tokens": -1}, "min_tokens"),
            ({"n": 0}, "n"),
            ({"n": 17}, "n"),
            ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
            ({"top_logprobs": 1}, "top_logprobs"),
            ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs.tokenize"),
            ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs.self"),
            ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
            ({"metadata": {"min_tokens": 6}, "max_tokens": 5}, "min_tokens"),
            ({"metadata": {"min_tokens": -1}}, "metadata.min_tokens"),
            ({"metadata": {"min_tokens": 1.5}}, "metadata.min_tokens"),
            ({"metadata": {"min_tokens": True}}, "metadata.min_tokens"),
            ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
            ({"min_p": 1.1}, "min_p"),
            ({"repetition_penalty": 0}, "repetition_penalty"),
            ({"frequency_penalty": 2.1}, "frequency_penalty"),
            ({"presence_penalty": -2.1}, "presence_penalty"),
            ({"logit_bias": {"5": 101}}, "logit_bias.5"),
            ({"logit_bias": {"hello": 1}}, "logit_bias"),
            ({"logit_bias": {"-1": 1}}, "logit_bias"),
            ({"logit_bias": [5]}, "logit_bias"),
            ({"stop": ["a"] * 5}, "stop"),
            ({"stop": [""]}, "stop.0"),
            ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
            ({"metadata": {"a": "v" * 513}}, "metadata.a"),
            ({"stream_options": {"include_usage": "perhaps"}}, "stream_options.include_usage"),
            ({"conversation": 5}, "conversation"),
            ({"conversation": {}}, "conversation"),
            ({"messages": []}, "messages"),
            ({"messages": "hi"}, "messages"),
            ({"messages": None}, "messages"),
            ({"messages": [{"role": "user"}]}, "messages.0.content"),
            ({"messages": [{"role": "tool", "content": "hi"}]}, "messages.0.tool_call_id"),
            ({"metadata": {"k" * 65: "v"}}, f"metadata.{'k' * 65}"),
            ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
            ({"max_tokens": True}, "max_tokens"),
            ({"max_tokens": "3"}, "max_tokens"),
            ({"store": 1}, "store"),
            ({"messages": [{"content": "hi"}, {"role": "robot", "content": "hi"}]}, "messages.1.role"),
            (
                {"messages": [{"content": [{"type": "image_url", "image_url": {"detail": "low"}}]}]},
                "messages.0.content.0.image_url.url",
            ),
            ({"model": 5}, "model"),
        ],
        ids=str,
    )
    async def test_wrong_ones_are_named(self, site: Site, fields: dict[str, Any], param: str, stream: bool) -> None:
        refused = await send(site, stream=stream, **fields)
        assert refused.status_code == 400
        found = error(refused)
        assert (found["type"], found["param"]) == ("invalid_request_error", param)
        assert found["code"] in ("invalid_value", None)
        assert param in found["message"]

    @BOTH
    @pytest.mark.parametrize(
        "fields",
        [
            {"temperature": 0},
            {"temperature": 2},
            {"top_p": 1},
            {"top_k": -1},
            {"seed": -(2**63)},
            {"stop": ["a"] * 4},
            {"metadata": {"k" * 64: "v" * 512}},
            {"max_tokens": 10**12},
        ],
        ids=str,
    )
    async def test_the_outermost_are_right(self, site: Site, fields: dict[str, Any], stream: bool) -> None:
        assert (await send(site, stream=stream, **fields)).status_code == 200

    @BOTH
    async def test_unknown_ones_are_named_in_a_header(self, site: Site, stream: bool) -> None:
        answer = await send(site, stream=stream, zebra=1, apple={"a": 1}, **{"with\nbreak": 1, "é": 1})
        assert answer.status_code == 200
        assert answer.headers["x-parley-ignored"] == "apple, zebra"

    @BOTH
    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"messages": [{"content": [{"type": "text", "text": "hi", "odd": 1}]}]}, "messages.0.content.0.odd"),
            ({"tools": [{"type": "function", "function": {"name": "f", "odd": 1}}]}, "tools.0.function.odd"),
            ({"response_format": {"type": "text", "odd": 1}}, "response_format.odd"),
            ({"verbosity": "low", "prediction": {"type": "content", "content": "x"}}, "prediction, verbosity"),
            ({"prompt_cache_retention": "24h", "moderation": {"model": "m"}}, "moderation, prompt_cache_retention"),
            (
                {"web_search_options": {}},
                "web_search_options",
            ),
            ({"reasoning_effort": "low", "enable_thinking": True}, "enable_thinking, reasoning_effort"),
        ],
        ids=str,
    )
    async def test_what_changes_no_answer_is_left_aside_and_named(
        self, new_site: NewSite, fields: dict[str, Any], named: str, stream: bool
    ) -> None:
        answer = await send(await new_site(), stream=stream, **fields)
        assert (answer.status_code, answer.headers.get("x-parley-ignored")) == (200, named), answer.text
        refused = await send(await new_site(strict=True), stream=stream, **fields)
        assert (refused.status_code, error(refused)["param"]) == (400, named.split(", ")[0])

    @BOTH
    async def test_unknown_ones_are_refused_where_that_is_set(self, new_site: NewSite, stream: bool) -> None:
        refused = await send(await new_site(strict=True), stream=stream, zebra=1)
        assert refused.status_code == 400
        assert error(refused)["param"] == "zebra"

    @BOTH
    @pytest.mark.parametrize("key", ["metadata", "extra"])
    async def test_refusals_are_bounded_and_do_not_repeat_the_input(self, site: Site, key: str, stream: bool) -> None:
        long = "s3cret" * 10_000
        fields: dict[str, dict[str, Any]] = {
            "metadata": {"metadata": {long: 5}},
            "extra": {"temperature": long},
        }
        refused = await send(site, stream=stream, **fields[key])
        assert refused.status_code == 400
        assert len(refused.content) < 1000

    async def test_names_within_the_contract_survive_in_a_path(self, site: Site) -> None:
        refused = await send(site, metadata={"query": [5]})
        assert error(refused)["param"] == "metadata.query"

    @BOTH
    async def test_template_that_refuses(self, site: Site, stream: bool) -> None:
        refused = await send(site, stream=stream, messages=[{"role": "assistant", "content": "hi"}])
        assert refused.status_code == 400
        assert error(refused)["param"] == "messages"
        assert "an answer cannot come first" in error(refused)["message"]


class TestRefusedBeforeTheStreamOpens:
    @BOTH
    async def test_unknown_model(self, site: Site, stream: bool) -> None:
        refused = await send(site, stream=stream, model="gpt-4o")
        assert refused.status_code == 404
        assert (error(refused)["param"], error(refused)["code"]) == ("model", "model_not_found")

    @BOTH
    async def test_prompt_too_long(self, site: Site, engine: FakeEngine, stream: bool) -> None:
        engine.max_length = 10
        refused = await send(site, stream=stream)
        assert refused.status_code == 400
        assert error(refused)["code"] == "context_length_exceeded"
        assert re.search(
            r"maximum context length is 10 tokens\..*\b21 tokens\. .*reduce the length of the messages",
            error(refused)["message"],
        )

    @BOTH
    async def test_queue_full(self, site: Site, engine: FakeEngine, stream: bool) -> None:
        engine.refusal = Overloaded("The queue is full", retry_after=2)
        refused = await send(site, stream=stream)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
        assert error(refused)["code"] == "overloaded"

    @BOTH
    @pytest.mark.parametrize("id", ["conv_" + "0" * 32, "nonsense", ""])
    async def test_unknown_conversation(self, site: Site, id: str, stream: bool) -> None:
        for given in (id, {"id": id}):
            refused = await send(site, stream=stream, conversation=given)
            assert (refused.status_code, error(refused)["param"]) == (404, "conversation")

    @BOTH
    async def test_refused_request_stores_nothing(self, site: Site, engine: FakeEngine, stream: bool) -> None:
        id_ = await conversation(site)
        for refusal in (Overloaded("full"), PromptTooLong(9, 8)):
            engine.refusal = refusal
            assert (await send(site, stream=stream, conversation=id_)).status_code in (400, 429)
        assert len(await stored(site, id_)) == 2


class TestAfterTheFirstByte:
    async def test_failure_is_an_event_and_then_done(self, site: Site, engine: FakeEngine) -> None:
        engine.script = ("Hel", EngineFailed("The engine failed on this request"))
        answer = await send(site, stream=True)
        assert answer.status_code == 200
        *_, text, failure, done, end = answer.text.split("\n\n")
        assert json.loads(text.removeprefix("data: "))["choices"][0]["delta"] == {"content": "Hel"}
        assert json.loads(failure.removeprefix("data: ")) == {
            "error": {
                "message": "The engine failed on this request",
                "type": "server_error",
                "param": None,
                "code": None,
            }
        }
        assert (done, end) == ("data: [DONE]", "")

    async def test_plain_answer_fails_with_a_status(self, site: Site, engine: FakeEngine) -> None:
        engine.script = ("Hel", EngineFailed("The engine failed on this request"))
        assert (await send(site)).status_code == 500

    @BOTH
    async def test_a_grammar_that_comes_to_no_end_is_the_requests_fault(
        self, site: Site, engine: FakeEngine, stream: bool
    ) -> None:
        engine.script = ("Hel", GrammarStuck("It is stuck", param="response_format"))
        answer = await send(site, stream=stream)
        assert answer.status_code == (200 if stream else 400)
        text = answer.text.split("\n\n")[-3].removeprefix("data: ") if stream else answer.text
        assert json.loads(text)["error"] == {
            "message": "It is stuck",
            "type": "invalid_request_error",
            "param": "response_format",
            "code": "grammar_stuck",
        }

    @BOTH
    async def test_generated_text_is_stored(self, site: Site, engine: FakeEngine, stream: bool) -> None:
        id_ = await conversation(site)
        engine.script = ("Hel", EngineFailed("broken"))
        await send(site, stream=stream, conversation=id_)
        assert (await stored(site, id_))[-1] == ("assistant", "Hel", "incomplete")

    @BOTH
    async def test_unexpected_failure_keeps_its_secrets(self, site: Site, engine: FakeEngine, stream: bool) -> None:
        engine.script = ("Hel", RuntimeError("secret"))
        answer = await send(site, stream=stream)
        assert answer.status_code == (200 if stream else 500)
        assert "secret" not in answer.text
        assert "server_error" in answer.text


class TestSlowLoad:
    """The first step takes longer than FIRST_EVENT_WAIT_S: the 200 is out before the model is there."""

    @pytest.fixture(autouse=True)
    def short_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sse, "FIRST_EVENT_WAIT_S", 0.01)

    @pytest.mark.parametrize("fails", [False, True])
    async def test_keep_alives_then_the_answer_or_an_error(
        self, new_server: NewSite, engine: FakeEngine, fails: bool
    ) -> None:
        gate = threading.Event()

        def build(kind: str, /, **options: object) -> FakeEngine:
            gate.wait()
            if fails:
                raise OSError("no such file")
            return engine

        site = await new_server(build=build, server={"keepalive_s": 0.01})
        async with site.client.stream("POST", PATH, json={**HI, "stream": True}) as answer:
            assert answer.status_code == 200
            lines = answer.aiter_lines()
            assert await anext(lines) == ": keep-alive"
            gate.set()
            rest = [line async for line in lines if line and not line.startswith(":")]
        if fails:
            assert json.loads(rest[0].removeprefix("data: "))["error"]["type"] == "server_error"
            assert rest[1:] == ["data: [DONE]"]
        else:
            assert "world!" in "".join(rest)
            assert rest[-1] == "data: [DONE]"

    async def test_plain_answer_waits(self, new_site: NewSite, engine: FakeEngine) -> None:
        def build(kind: str, /, **options: object) -> FakeEngine:
            raise OSError("no such file")

        assert (await send(await new_site(build=build))).status_code == 500


class TestClientGone:
    async def test_streamed(self, server: Site, engine: FakeEngine) -> None:
        id_ = await conversation(server)
        engine.script = ("Hel", Pause())
        body = {**HI, "stream": True, "conversation": id_}
        async with server.client.stream("POST", PATH, json=body) as answer:
            async for line in answer.aiter_lines():
                if "Hel" in line:
                    break
        await engine.idle.wait()
        assert (await stored(server, id_))[-1] == ("assistant", "Hel", "incomplete")

    async def test_plain(self, server: Site, engine: FakeEngine) -> None:
        id_ = await conversation(server)
        pause = Pause()
        engine.script = ("Hel", pause)
        asking = asyncio.create_task(send(server, conversation=id_))
        await pause.reached.wait()
        asking.cancel()
        await asyncio.wait([asking])
        await engine.idle.wait()
        assert (await stored(server, id_))[-1] == ("assistant", "Hel", "incomplete")
        counted = (await server.client.get("/metrics")).text
        assert 'parley_http_requests_total{method="POST",route="/v1/chat/completions",status="499"} 1.0' in counted


class TestStatus:
    async def test_before_and_after_the_first_use(self, new_site: NewSite) -> None:
        site = await new_site(chat={"system_prompt": "be brief"})
        status = (await site.client.get("/chat")).json()
        assert status == {
            "status": "running",
            "llm_serving_url": "http://localhost/",
            "model_name": MODEL,
            "max_new_tokens": None,
            "device": "auto",
            "do_sample": True,
            "sampling": EffectiveSampling().model_dump(),
            "system_prompt": "be brief",
        }
        await send(site)
        after = (await site.client.get("/chat")).json()
        assert (after["device"], after["max_new_tokens"]) == ("fake", 4096)

    async def test_not_started_while_loading(self, new_site: NewSite, engine: FakeEngine) -> None:
        gate = threading.Event()

        def build(kind: str, /, **options: object) -> FakeEngine:
            gate.wait()
            return engine

        site = await new_site(build=build, model={"name": MODEL, "preload": True})
        assert (await site.client.get("/chat")).json() == {**NOT_STARTED, "reason": "loading"}
        gate.set()
        await site.services.models.get_model()
        assert (await site.client.get("/chat")).json()["status"] == "running"


async def test_answer_comes_back_as_the_official_clients_dump_it(site: Site) -> None:
    question = {"role": "user", "content": "hi"}
    first = (await site.client.post("/v1/chat/completions", json={"messages": [question]})).json()
    dumped = ChatCompletionMessage.model_validate(first["choices"][0]["message"]).model_dump()
    for more in ({}, {"annotations": [], "reasoning_content": "hm"}):
        body = {"messages": [question, dumped | more, question]}
        answer = await site.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
