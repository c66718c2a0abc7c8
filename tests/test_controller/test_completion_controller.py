"""POST /v1/completions on the wire, plain and streamed; the model is the alphabet, where its tokens matter."""

import asyncio
import json
import math
import re
from typing import Any

import httpx2
import pytest

from services.chat.request.completion import MAX_CHOICES, UNSUPPORTED
from services.engine.base import Piece, TokenLogprob, UpstreamAddress
from services.engine.execution.local_executor import LocalExecutor
from services.engine.local import LocalEngine
from services.engine.remote.engine import RemoteEngine
from services.errors import EngineFailed, Overloaded
from tests.apps import MODEL, NewSite, Site
from tests.fakes import FakeEngine, Pause
from tests.test_engine.fakes import LETTERS, Counting, loaded, settled
from tests.test_engine.test_remote.engines import engine_of

PATH = "/v1/completions"
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])


async def send(site: Site, prompt: Any = "abc", *, path: str = PATH, **fields: Any) -> httpx2.Response:
    return await site.client.post(path, json={"prompt": prompt, **fields})


async def choices(site: Site, prompt: Any = "abc", **fields: Any) -> list[dict[str, Any]]:
    answer = await send(site, prompt, **{"temperature": 0, "max_tokens": 3, **fields})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["choices"]
    return found


def stream_chunks(answer: httpx2.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def texts(chunks: list[dict[str, Any]], count: int) -> list[str]:
    deltas = [choice for chunk in chunks for choice in chunk["choices"]]
    return ["".join(each["text"] for each in deltas if each["index"] == index) for index in range(count)]


async def refusal(site: Site, status: int = 400, **fields: Any) -> str | None:
    answer = await send(site, **fields)
    assert answer.status_code == status, answer.text
    param: str | None = answer.json()["error"]["param"]
    return param


def local(kind: str, /, **options: object) -> LocalEngine:
    return LocalEngine(loaded(), LocalExecutor(Counting(num_slots=4)), max_num_batched_tokens=16, max_queue=30)


@pytest.fixture(params=["local", "remote"])
async def letters(request: pytest.FixtureRequest, new_site: NewSite, new_server: NewSite) -> Site:
    """`remote`: computed by a second server."""
    if request.param == "local":
        return await new_site(build=local)
    upstream = await new_server(build=local)
    await send(upstream, max_tokens=1)  # it loads, and tells its context length from then on

    def remote(kind: str, /, **options: object) -> RemoteEngine:
        return engine_of(UpstreamAddress(f"{upstream.client.base_url}/v1"))

    return await new_site(build=remote)


class TestTranscript:
    async def test_plain(self, site: Site) -> None:
        body = (await send(site, user="somebody")).json()
        assert re.fullmatch("cmpl-[0-9a-f]{32}", body.pop("id"))
        assert isinstance(body.pop("created"), int)
        assert re.fullmatch("fp_[0-9a-f]{10}", body.pop("system_fingerprint"))
        assert body == {
            "object": "text_completion",
            "model": MODEL,
            "choices": [{"text": "Hello, world!", "index": 0, "logprobs": None, "finish_reason": "stop"}],
            "usage": {
                "prompt_tokens": 3,
                "completion_tokens": 3,
                "total_tokens": 6,
                "prompt_tokens_details": {"cached_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0},
            },
        }

    async def test_stream_with_usage(self, site: Site) -> None:
        answer = await send(site, stream=True, stream_options={"include_usage": True})
        assert answer.headers["content-type"].startswith("text/event-stream")
        chunks = stream_chunks(answer)
        assert len({(chunk.pop("id"), chunk.pop("created"), chunk.pop("system_fingerprint")) for chunk in chunks}) == 1
        assert all((chunk.pop("object"), chunk.pop("model")) == ("text_completion", MODEL) for chunk in chunks)
        last = chunks.pop()
        assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 3)
        times = [choice.pop("arrival_time") for chunk in chunks for choice in chunk["choices"]]
        assert times == sorted(times)
        expected = [("Hello", None), (", ", None), ("world!", None), ("", "stop")]
        assert chunks == [
            {"choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": reason}], "usage": None}
            for text, reason in expected
        ]

    async def test_no_usage_unless_requested(self, site: Site) -> None:
        assert {"usage" in chunk for chunk in stream_chunks(await send(site, stream=True))} == {False}
        so_far = stream_chunks(await send(site, stream=True, stream_options={"continuous_usage_stats": True}))
        assert [chunk["usage"]["completion_tokens"] for chunk in so_far] == [1, 2, 3, 3]

    @BOTH
    async def test_same_without_v1(self, site: Site, stream: bool) -> None:
        assert "world!" in (await send(site, path="/completions", stream=stream)).text


class TestPrompt:
    async def test_every_shape(self, letters: Site) -> None:
        for prompt in ("abc", ["abc"], [0, 1, 2], [[0, 1, 2]]):
            assert [choice["text"] for choice in await choices(letters, prompt)] == ["def"]

    @BOTH
    async def test_several_in_their_order(self, letters: Site, stream: bool) -> None:
        fields = {"n": 2, "temperature": 0, "max_tokens": 3, "stream": stream}
        answer = await send(letters, ["abc", "k", "tu"], **fields)
        expected = ["def", "def", "lmn", "lmn", "vwx", "vwx"]
        if stream:
            assert texts(stream_chunks(answer), 6) == expected
        else:
            assert [choice["text"] for choice in answer.json()["choices"]] == expected
            assert [choice["index"] for choice in answer.json()["choices"]] == list(range(6))

    async def test_each_is_counted_once(self, letters: Site) -> None:
        fields = {"n": 2, "temperature": 0, "max_tokens": 3}
        usage = (await send(letters, ["abc", "k"], **fields)).json()["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (4, 12, 16)
        chunks = stream_chunks(
            await send(letters, ["abc", "k"], **fields, stream=True, stream_options={"include_usage": True})
        )
        assert chunks[-1]["usage"]["total_tokens"] == 16
        metrics = (await letters.client.get("/metrics")).text
        assert re.search(r"parley_prompt_tokens_total\{.*\} 8.0", metrics)
        assert re.search(r"parley_generation_tokens_total\{.*\} 24.0", metrics)

    async def test_default_length_is_sixteen(self, letters: Site) -> None:
        (choice,) = (await send(letters, "a", temperature=0, max_tokens=None)).json()["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("bcdefghijklmnopq", "length")

    @BOTH
    async def test_what_is_no_prompt(self, letters: Site, stream: bool) -> None:
        await send(letters, max_tokens=1)  # whoever waits for a slow load has the head of a stream before its refusal
        for prompt in (None, [], [""], {}, 5, True, ["a", 1], [[]], [1.5], ["a"] * 129):
            assert (await refusal(letters, prompt=prompt, stream=stream) or "").startswith("prompt")
        assert await refusal(letters, prompt="", stream=stream) == "prompt"
        assert await refusal(letters, prompt=["abc", [0]], stream=stream) == "prompt.1"
        assert await refusal(letters, prompt=[["a"]], stream=stream) == "prompt.0.0"
        assert await refusal(letters, prompt=[0, LETTERS], stream=stream) == "prompt"
        assert await refusal(letters, prompt=[[0], [LETTERS]], stream=stream) == "prompt.1"
        assert await refusal(letters, prompt=["a", "a" * 65], stream=stream) == "prompt.1"


class TestParameters:
    async def test_echo(self, letters: Site) -> None:
        assert [each["text"] for each in await choices(letters, ["abc", "k"], echo=True)] == ["abcdef", "klmn"]
        assert [each["text"] for each in await choices(letters, [0, 1], echo=True)] == ["abcde"]
        assert texts(
            stream_chunks(await send(letters, ["abc", "k"], echo=True, stream=True, temperature=0, max_tokens=2)), 2
        ) == [
            "abcde",
            "klm",
        ]

    async def test_logprobs_in_the_legacy_shape(self, letters: Site) -> None:
        (choice,) = await choices(letters, logprobs=2, logit_bias={"9": 5})
        others = math.log(math.e + LETTERS - 1)
        found = choice["logprobs"]
        assert (choice["text"], found["tokens"], found["text_offset"]) == ("jjj", ["j"] * 3, [0, 1, 2])
        assert found["token_logprobs"] == pytest.approx([-others] * 3, abs=1e-5)
        first = found["top_logprobs"][0]
        assert {name: round(value, 4) for name, value in first.items() if name in "dj"} == {
            "d": round(1 - others, 4),
            "j": round(-others, 4),
        }
        assert len(first) == 3  # two, and the one that was sampled
        (alone,) = await choices(letters, logprobs=0)
        assert [list(each) for each in alone["logprobs"]["top_logprobs"]] == [["d"], ["e"], ["f"]]
        assert (await choices(letters))[0]["logprobs"] is None

    @BOTH
    async def test_logprobs_by_token_ids(self, letters: Site, stream: bool) -> None:
        fields = {"logprobs": 1, "return_tokens_as_token_ids": True, "temperature": 0, "max_tokens": 2}
        answer = await send(letters, "abc", stream=stream, **fields)
        parts = stream_chunks(answer) if stream else [answer.json()]
        found = [choice["logprobs"] for part in parts for choice in part["choices"] if choice["logprobs"]]
        assert [token for each in found for token in each["tokens"]] == ["token_id:3", "token_id:4"]
        assert [list(top) for each in found for top in each["top_logprobs"]] == [["token_id:3"], ["token_id:4"]]

    async def test_streamed_logprobs_are_the_plain_ones(self, letters: Site) -> None:
        fields = {"logprobs": 1, "stop": "gh", "max_tokens": 9, "temperature": 0}
        (plain,) = await choices(letters, **fields)
        parts = [chunk["choices"][0]["logprobs"] for chunk in stream_chunks(await send(letters, stream=True, **fields))]
        for name, values in plain["logprobs"].items():
            assert [value for part in parts if part for value in part[name]] == values
        assert plain["logprobs"]["tokens"] == ["d", "e", "f"]

    async def test_tokens_within_a_character(self, site: Site, engine: FakeEngine) -> None:
        parts = [TokenLogprob("\ufffd", bytes([byte]), -0.5) for byte in "é".encode()]
        whole = [TokenLogprob("a", b"a", -0.5)]
        engine.script = (Piece("a", (1,), None, tuple(whole)), Piece("éa", (2, 3, 1), None, (*parts, *whole)))
        found = (await choices(site, logprobs=0))[0]["logprobs"]
        assert found["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9", "a"]
        assert found["text_offset"] == [0, 1, 1, 2]

    async def test_best_of_several(self, letters: Site) -> None:
        fields = {"temperature": 2, "seed": 3, "max_tokens": 4}
        sampled = await choices(letters, n=6, logprobs=0, **fields)
        answer = (await send(letters, n=2, best_of=6, **fields)).json()
        ranked = sorted(sampled, key=lambda choice: -sum(choice["logprobs"]["token_logprobs"]) / 4)
        assert [choice["text"] for choice in answer["choices"]] == [choice["text"] for choice in ranked[:2]]
        assert [choice["index"] for choice in answer["choices"]] == [0, 1]
        assert [choice["logprobs"] for choice in answer["choices"]] == [None, None]
        assert answer["usage"]["completion_tokens"] == 24

    async def test_token_ids(self, letters: Site) -> None:
        (choice,) = await choices(letters, return_token_ids=True)
        assert choice["token_ids"] == [3, 4, 5]
        chunks = stream_chunks(await send(letters, return_token_ids=True, stream=True, temperature=0, max_tokens=3))
        assert [token for chunk in chunks for token in chunk["choices"][0].get("token_ids", [])] == [3, 4, 5]

    async def test_what_chat_takes_too(self, letters: Site) -> None:
        assert (await choices(letters, stop="e"))[0]["text"] == "d"
        assert (await choices(letters, min_tokens=3, stop_token_ids=[3]))[0]["text"] == "abc"
        assert (await choices(letters, metadata={"min_tokens": 3}, stop_token_ids=[3]))[0]["text"] == "abc"
        assert (await choices(letters, logit_bias={"0": 2}, presence_penalty=1.5))[0]["text"] == "abc"

    @BOTH
    async def test_the_last_tokens_of_a_prompt(self, letters: Site, stream: bool) -> None:
        fields: dict[str, Any] = {"temperature": 0, "max_tokens": 2, "truncate_prompt_tokens": 2, "stream": stream}
        options = {"stream_options": {"include_usage": True}} if stream else {}
        answer = await send(letters, ["abc", "h", "m" * 65], **fields, **options)
        chunks = stream_chunks(answer) if stream else [answer.json()]
        assert texts(chunks, 3) == ["de", "ij", "no"]
        assert (chunks[-1]["usage"]["prompt_tokens"], chunks[-1]["usage"]["prompt_tokens_details"]) == (
            5,
            {"cached_tokens": 0, "truncated_tokens": 64},
        )

    async def test_as_much_of_a_prompt_as_leaves_room(self, letters: Site) -> None:
        fields = {"temperature": 0, "max_tokens": 4, "truncate_prompt_tokens": -1}
        answer = (await send(letters, "m" * 65, **fields)).json()
        assert answer["choices"][0]["text"] == "nopq"
        assert answer["usage"]["prompt_tokens"] == 60
        assert await refusal(letters, prompt="m" * 65, truncate_prompt_tokens=64) == "prompt"
        assert await refusal(letters, truncate_prompt_tokens=0) == "truncate_prompt_tokens"

    async def test_chunks_are_made_equally_long(self, site: Site, engine: FakeEngine) -> None:
        engine.script = ("a", "longer")
        chunks = stream_chunks(await send(site, stream=True, stream_options={"include_obfuscation": True}))
        one, other, _ = (len(json.dumps(chunk)) for chunk in chunks)
        assert one == other

    async def test_refused_by_name(self, letters: Site) -> None:
        for name in UNSUPPORTED:
            assert await refusal(letters, **{name: "anything else"}) == name
        assert await refusal(letters, echo=True, logprobs=1, best_of=2) == "best_of"
        assert await refusal(letters, max_tokens=0) == "max_tokens"
        assert await refusal(letters, n=3, best_of=2) == "best_of"
        assert await refusal(letters, best_of=2, stream=True) == "best_of"
        assert await refusal(letters, min_tokens=17) == "min_tokens"
        assert await refusal(letters, stream_options={}) == "stream_options"
        assert await refusal(letters, prompt=["a"] * 20, n=1 + MAX_CHOICES // 20) == "n"
        for name in ("max_tokens", "best_of", "n", "temperature", "logprobs", "top_p", "seed", "stop", "logit_bias"):
            assert (await refusal(letters, **{name: [[]]}) or "").startswith(name)
        assert await refusal(letters, logprobs=21) == "logprobs"
        assert await refusal(letters, max_tokens=0) == "max_tokens"

    @BOTH
    async def test_nothing_is_asked_by_null(self, letters: Site, stream: bool) -> None:
        names = ("best_of", "echo", "logprobs", "n", "stop", "seed", "suffix", "logit_bias", "user", "stream_options")
        fields: dict[str, Any] = {**dict.fromkeys(names), "temperature": 0, "max_tokens": 2, "stream": stream}
        answer = await send(letters, **fields)
        assert (texts(stream_chunks(answer), 1) if stream else [answer.json()["choices"][0]["text"]]) == ["de"]

    @BOTH
    async def test_unknown_keys_are_named(self, letters: Site, stream: bool) -> None:
        assert (await send(letters, zebra=1, stream=stream)).headers["x-parley-ignored"] == "zebra"

    async def test_unknown_keys_are_refused_if_strict(self, new_site: NewSite) -> None:
        assert await refusal(await new_site(strict=True), zebra=1) == "zebra"


class TestFailures:
    @BOTH
    async def test_before_the_first_byte(self, site: Site, engine: FakeEngine, stream: bool) -> None:
        assert await refusal(site, 404, model="another", stream=stream) == "model"
        engine.refusal = Overloaded("The queue is full")
        answer = await send(site, stream=stream)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")

    async def test_in_the_middle_of_a_stream(self, site: Site, engine: FakeEngine) -> None:
        engine.script = ("Hel", EngineFailed("It broke"))
        first, failure = stream_chunks(await send(site, stream=True, stream_options={"include_usage": True}))
        assert first["choices"][0]["text"] == "Hel"
        assert failure["error"]["message"] == "It broke"

    async def test_one_of_several_prompts_is_refused(self, letters: Site) -> None:
        assert await refusal(letters, prompt=["abc", "a" * 65]) == "prompt.1"
        engine = letters.services.models.engine(MODEL)
        assert engine
        await settled(engine)
        assert (engine.stats().running, engine.stats().waiting) == (0, 0)

    async def test_who_leaves_ends_the_work(self, server: Site, engine: FakeEngine) -> None:
        pause = Pause()
        engine.script = ("Hel", pause)
        leaving = asyncio.create_task(send(server, ["one", "two"]))
        await pause.reached.wait()
        leaving.cancel()
        await engine.idle.wait()
        assert engine.running == set()

    async def test_who_leaves_a_stream_ends_the_work(self, server: Site, engine: FakeEngine) -> None:
        pause = Pause()
        engine.script = ("Hel", pause)
        body = {"prompt": ["one", "two"], "stream": True}
        async with server.client.stream("POST", PATH, json=body) as answer:
            await anext(answer.aiter_lines())
            await pause.reached.wait()
        await engine.idle.wait()
        assert engine.running == set()
