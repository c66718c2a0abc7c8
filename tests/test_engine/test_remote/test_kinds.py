"""What each kind of server is asked, what is refused in its name, and how its answers are read."""

import json
import re
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import pytest

from services.engine.base import GrammarSpec, SamplingParams, ThinkingLimit, TokenLogprob
from services.errors import EngineFailed, InvalidRequest, UnsupportedParameter
from tests.test_engine.fakes import END, job
from tests.test_engine.test_remote.engines import engine_at, read, text_of
from tests.test_engine.test_remote.servers import (
    DONE,
    LLAMA_PAGES,
    SGLANG_PAGES,
    VLLM_PAGES,
    WIRES,
    WireServer,
    completions,
    event,
    llama_cpp,
    models,
    sglang,
)
from tests.test_engine.tiny_tokenizers import byte_level

KINDS = pytest.mark.parametrize("kind", WIRES)
ALL = {
    "max_tokens": 9,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 4,
    "min_p": 0.1,
    "repetition_penalty": 1.5,
    "ignore_eos": True,
    "stop_token_ids": (3, 4),
    "logit_bias": {5: -1.5},
}
SCHEMA = '{"type": "object", "x-guidance": {"lenient": true}}'
JSON = GrammarSpec("json_schema", SCHEMA)
REGEX = GrammarSpec("regex", "[ab]+", "guided_regex")
GBNF = GrammarSpec("lark", 'root ::= "a" | "b"', "guided_grammar")
LARK = GrammarSpec("lark", 'start: "a" <tool> %json {"type": "string"}', "tool_choice")
AFTER_THINKING = GrammarSpec("regex", "a", "guided_regex", before="...</think>")


async def asked(kind: str, pages: Any = None, **params: Any) -> Any:
    """The body of the request for a job with these sampling parameters."""
    known, speak = WIRES[kind]
    server = WireServer(pages or known, speak([3], finish="length"))
    async with server.serving(), engine_at(server) as engine:
        await read(await engine.submit(job("abc", **params)))
        return server.body


async def refused(kind: str, **params: Any) -> UnsupportedParameter:
    server = WireServer(WIRES[kind][0])
    async with server.serving(), engine_at(server) as engine:
        with pytest.raises(UnsupportedParameter) as error:
            await engine.submit(job("abc", **params))
        assert not server.requests
        return error.value


@KINDS
async def test_tokens_become_text(kind: str) -> None:
    pages, speak = WIRES[kind]
    server = WireServer(pages, speak([3], [4, 5], [END], cached=2))
    async with server.serving(), engine_at(server) as engine:
        pieces = await read(await engine.submit(job("abc")))
        assert text_of(pieces) == "def"
        assert [token for piece in pieces for token in piece.token_ids] == [3, 4, 5, END]
        last = pieces[-1]
        assert (last.finish, last.cached_tokens) == ("stop", 2)
        assert last.times
        assert min(last.times.queued, last.times.prefill, last.times.decode) >= 0
        assert server.requests[0].headers["authorization"] == "Bearer a-secret-key"
        assert engine.stats().prefix_reused == 2
        assert engine.max_length == 48


@KINDS
async def test_length_and_limits(kind: str) -> None:
    pages, speak = WIRES[kind]
    server = WireServer(pages, speak([3], [4], finish="length"))
    async with server.serving(), engine_at(server) as engine:
        pieces = await read(await engine.submit(job("abc", max_tokens=2)))
        assert (text_of(pieces), pieces[-1].finish) == ("de", "length")


async def test_vllm_is_asked() -> None:
    body = await asked("vllm", **ALL, min_tokens=2, frequency_penalty=0.25, presence_penalty=0.75, seed=7)
    assert body == {
        "model": "the-model",
        "prompt": [0, 1, 2],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
        "repetition_penalty": 1.5,
        "frequency_penalty": 0.25,
        "presence_penalty": 0.75,
        "min_tokens": 2,
        "ignore_eos": True,
        "stop_token_ids": [3, 4],
        "logit_bias": {"5": -1.5},
        "seed": 7,
        "return_token_ids": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_sglang_is_asked() -> None:
    deterministic = {**SGLANG_PAGES, "/get_server_info": {"enable_deterministic_inference": True}}
    body = await asked(
        "sglang", deterministic, **ALL, min_tokens=2, frequency_penalty=0.25, presence_penalty=0.75, seed=7
    )
    assert body == {
        "input_ids": [0, 1, 2],
        "stream": True,
        "sampling_params": {
            "max_new_tokens": 9,
            "min_new_tokens": 2,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 4,
            "min_p": 0.1,
            "repetition_penalty": 1.5,
            "frequency_penalty": 0.25,
            "presence_penalty": 0.75,
            "ignore_eos": True,
            "stop_token_ids": [3, 4],
            "skip_special_tokens": False,
            "no_stop_trim": True,
            "logit_bias": {"5": -1.5},
            "sampling_seed": 7,
        },
    }


async def test_llama_cpp_is_asked() -> None:
    assert await asked("llama.cpp", **ALL, seed=-1) == {
        "prompt": [0, 1, 2],
        "n_predict": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
        "typical_p": 1.0,
        "repeat_penalty": 1.5,
        "repeat_last_n": 12,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "ignore_eos": True,
        "logit_bias": [[5, -1.5]],
        "seed": 2**32 - 2,
        "cache_prompt": True,
        "return_tokens": True,
        "stream": True,
    }


@pytest.mark.parametrize(("kind", "off"), [("vllm", 0), ("parley", 0), ("sglang", -1), ("llama.cpp", 0)])
async def test_what_a_job_leaves_open_is_no_default_of_the_server(kind: str, off: int) -> None:
    body = await asked(kind)
    params = body.get("sampling_params", body)
    neutral = {"temperature": 0, "top_p": 1, "top_k": off, "min_p": 0, "presence_penalty": 0, "frequency_penalty": 0}
    assert {name: params[name] for name in neutral} == neutral
    assert params.get("repetition_penalty", params.get("repeat_penalty")) == 1
    assert not {"seed", "sampling_seed", "logit_bias", "logprobs", "n_probs"} & {*params, *body}


@KINDS
async def test_nucleus_of_nothing_is_greedy(kind: str) -> None:
    body = await asked(kind, temperature=1.5, top_p=0.0)
    params = body.get("sampling_params", body)
    assert (params["temperature"], params["top_p"]) == (0, 1)


@pytest.mark.parametrize(
    ("kind", "param", "params"),
    [
        *(
            ("vllm", "thinking_token_budget", {"thinking": ThinkingLimit(1, end=3), **more})
            for more in ({"grammar": REGEX}, {"frequency_penalty": 1.0}, {"presence_penalty": 1.0})
        ),
        *((kind, "frequency_penalty", {"frequency_penalty": 2.5}) for kind in WIRES),
        *((kind, "presence_penalty", {"presence_penalty": -2.5}) for kind in WIRES),
        ("parley", "temperature", {"temperature": 2.5}),
        ("sglang", "seed", {"seed": 1}),
        ("sglang", "repetition_penalty", {"repetition_penalty": 2.5}),
        ("sglang", "tool_choice", {"grammar": LARK}),
        ("sglang", "guided_regex", {"grammar": AFTER_THINKING}),
        ("llama.cpp", "min_tokens", {"min_tokens": 1}),
        ("llama.cpp", "echo", {"prompt_logprobs": 1}),
        ("llama.cpp", "guided_regex", {"grammar": REGEX}),
        ("llama.cpp", "tool_choice", {"grammar": LARK}),
    ],
)
async def test_refused_by_name(kind: str, param: str, params: dict[str, Any]) -> None:
    error = await refused(kind, **params)
    assert error.param == param
    assert param in error.message


# a value of each of a job's parameters that changes its answer
CHANGES: dict[str, Any] = {
    **ALL,
    "seed": 5,
    "stop": ("x",),
    "include_stop": True,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "min_tokens": 2,
    "logprobs": 1,
    "prompt_logprobs": 1,
    "grammar": JSON,
    "thinking": ThinkingLimit(1, end=3),
}
HERE = {"stop", "include_stop", "stop_token_ids"}  # are found in the text, or among the tokens, by this server


@KINDS
async def test_no_parameter_is_left_aside(kind: str) -> None:
    assert CHANGES.keys() == {field.name for field in fields(SamplingParams)}
    plain, left_aside = await asked(kind), set()
    for name, value in CHANGES.items():
        # refusals are named (test_refused_by_name); an answer without what was requested shows that it was
        with suppress(UnsupportedParameter, EngineFailed):
            if await asked(kind, **{name: value}) == plain:
                left_aside.add(name)
    assert left_aside <= HERE


@pytest.mark.parametrize(
    ("kind", "spec", "expected"),
    [
        ("vllm", JSON, {"structured_outputs": {"json": {"type": "object"}}}),
        ("vllm", REGEX, {"structured_outputs": {"regex": "[ab]+"}}),
        ("vllm", GBNF, {"structured_outputs": {"grammar": GBNF.source}}),
        ("parley", JSON, {"structured_outputs": {"json": json.loads(SCHEMA)}}),
        ("parley", REGEX, {"structured_outputs": {"regex": "[ab]+"}}),
        ("llama.cpp", JSON, {"json_schema": {"type": "object"}}),
        ("llama.cpp", GBNF, {"grammar": GBNF.source}),
    ],
)
async def test_grammars(kind: str, spec: GrammarSpec, expected: dict[str, Any]) -> None:
    body = await asked(kind, grammar=spec)
    assert {name: body[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [(JSON, {"json_schema": '{"type": "object"}'}), (REGEX, {"regex": "[ab]+"}), (GBNF, {"ebnf": GBNF.source})],
)
async def test_grammars_of_sglang(spec: GrammarSpec, expected: dict[str, Any]) -> None:
    params = (await asked("sglang", grammar=spec))["sampling_params"]
    assert {name: params[name] for name in expected} == expected


@pytest.mark.parametrize("spec", [LARK, AFTER_THINKING], ids=["tools", "after thinking"])
async def test_lark_is_sent_without_what_only_this_server_reads(spec: GrammarSpec) -> None:
    of_vllm = (await asked("vllm", grammar=spec))["structured_outputs"]["grammar"]
    of_parley = (await asked("parley", grammar=spec))["structured_outputs"]["grammar"]
    assert of_vllm == of_parley
    assert of_parley.startswith("start:")
    # these letters have no such tokens: markers are texts
    assert not re.search('(?<!")<(tool|/think)>', of_parley)


@pytest.mark.parametrize(
    ("kind", "info", "expected"),
    [
        ("vllm", {}, 1),
        ("sglang", {}, -1),
        ("sglang", {"schedule_low_priority_values_first": True}, 1),
    ],
)
async def test_low_priorities_run_first_everywhere(kind: str, info: dict[str, Any], expected: int) -> None:
    pages, speak = WIRES[kind]
    server = WireServer({**pages, "/get_server_info": info}, speak([3]))
    async with server.serving(), engine_at(server) as engine:
        await read(await engine.submit(replace(job("abc"), priority=1)))
        assert server.body["priority"] == expected


@pytest.mark.parametrize("incremental", [False, True])
async def test_sglang_sends_all_tokens_again_or_only_the_new_ones(incremental: bool) -> None:
    server = WireServer(SGLANG_PAGES, sglang([3], [3], [4, 3], [3, END], incremental=incremental))
    async with server.serving(), engine_at(server) as engine:
        assert text_of(await read(await engine.submit(job("abc")))) == "ddedd"


async def test_sglang_may_leave_the_last_token_out() -> None:
    *events, last, done = sglang([3], [4], [END])
    trimmed = json.loads(last.removeprefix(b"data: "))
    trimmed["output_ids"] = [3, 4]
    server = WireServer(SGLANG_PAGES, [*events, event(trimmed), done])
    async with server.serving(), engine_at(server) as engine:
        assert text_of(await read(await engine.submit(job("abc")))) == "de"


TOP = {3: -0.5, 4: -1.5}
NAMED = (TokenLogprob("d", b"d", -0.5), TokenLogprob("e", b"e", -1.5))


@KINDS
async def test_logprobs(kind: str) -> None:
    pages, speak = WIRES[kind]
    server = WireServer(pages, speak([(3, -0.5, TOP)], [(5, -2.5, TOP)], finish="length"))
    async with server.serving(), engine_at(server) as engine:
        pieces = await read(await engine.submit(job("abc", logprobs=2)))
    assert [each for piece in pieces for each in piece.logprobs] == [
        TokenLogprob("d", b"d", -0.5, NAMED),
        TokenLogprob("f", b"f", -2.5, NAMED),
    ]


@KINDS
async def test_logprobs_without_alternatives(kind: str) -> None:
    pages, speak = WIRES[kind]
    server = WireServer(pages, speak([(3, -0.5, TOP)], finish="length"))
    async with server.serving(), engine_at(server) as engine:
        pieces = await read(await engine.submit(job("abc", logprobs=0)))
    assert [each for piece in pieces for each in piece.logprobs] == [TokenLogprob("d", b"d", -0.5)]


@pytest.mark.parametrize("kind", ["vllm", "parley", "sglang"])
async def test_prompt_logprobs(kind: str) -> None:
    pages, speak = WIRES[kind]
    prompt = [0, (1, -1.0, TOP), (2, -2.0, TOP)]
    server = WireServer(pages, speak([(3, -0.5, TOP)], [(4, -0.5, TOP)], finish="length", prompt=prompt))
    async with server.serving(), engine_at(server) as engine:
        first, *others = await read(await engine.submit(job("abc", logprobs=1, prompt_logprobs=1)))
    assert first.prompt[0].logprob != first.prompt[0].logprob
    assert first.prompt[1:] == (
        TokenLogprob("b", b"b", -1.0, NAMED[:1]),
        TokenLogprob("c", b"c", -2.0, NAMED[:1]),
    )
    assert not any(piece.prompt for piece in others)
    assert len([each for piece in (first, *others) for each in piece.logprobs]) == 2
    body = server.body
    assert (body.get("echo"), body.get("logprob_start_len")) in ((True, None), (None, 0))


async def test_parley_may_send_ids_before_their_logprobs() -> None:
    late = [dict(json.loads(chunk.removeprefix(b"data: "))) for chunk in completions([3], [4, END])[:2]]
    weighed = json.loads(completions([(3, -0.5, TOP), (4, -0.5, TOP)])[0].removeprefix(b"data: "))
    late[1]["choices"][0]["logprobs"] = weighed["choices"][0]["logprobs"]
    server = WireServer(VLLM_PAGES, [*map(event, late), DONE])
    async with server.serving(), engine_at(server) as engine:
        pieces = await read(await engine.submit(job("abc", logprobs=0)))
    assert text_of(pieces) == "de"
    assert [each.text for piece in pieces for each in piece.logprobs] == ["d", "e"]


async def test_llama_cpp_tells_only_the_last_token_of_a_character() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("a😀b", add_special_tokens=False)
    smiley = ids[1:-1]
    assert len(smiley) > 1
    told = [("a", ids[:1], 1), ("😀", smiley[-1:], len(ids) - 1), ("b", ids[-1:], len(ids))]
    server = WireServer(LLAMA_PAGES, llama_cpp(*told, finish="limit"))
    async with server.serving(), engine_at(server, tokenizer=tokenizer) as engine:
        pieces = await read(await engine.submit(job("abc")))
    assert text_of(pieces) == "a😀b"
    assert [token for piece in pieces for token in piece.token_ids] == ids


@pytest.mark.parametrize("kind", ["vllm", "parley"])
async def test_grammar_that_cannot_be_read_is_named(kind: str) -> None:
    server = WireServer(WIRES[kind][0])
    spec = GrammarSpec("lark", "start: %json {", "guided_grammar")
    async with server.serving(), engine_at(server) as engine:
        with pytest.raises(InvalidRequest) as error:
            await engine.submit(job("abc", grammar=spec))
        assert error.value.param == "guided_grammar"


async def test_llama_cpp_ends_at_tokens_that_the_models_files_do_not_name() -> None:
    server = WireServer(LLAMA_PAGES, llama_cpp(("", [7], 1), ("e", [4], 2), ("", [8], 3), ("", [9], 4)))
    async with server.serving(), engine_at(server) as engine:
        pieces = await read(await engine.submit(job("abc")))
    assert (text_of(pieces), pieces[-1].finish) == ("hei", "stop")  # others without text, as markers of tools, stay
    assert [token for piece in pieces for token in piece.token_ids] == [7, 4, 8, 9]


@pytest.mark.parametrize(("kind", "pages"), [("sglang", SGLANG_PAGES), ("llama.cpp", LLAMA_PAGES)])
async def test_pages_that_a_version_does_not_have(kind: str, pages: dict[str, Any]) -> None:
    server = WireServer({"/v1/models": pages["/v1/models"]}, WIRES[kind][1]([3]))
    async with server.serving(), engine_at(server) as engine:
        assert text_of(await read(await engine.submit(job("abc")))) == "d"


async def test_kind_and_model_may_be_named() -> None:
    pages = {"/v1/models": {"data": [*models("proxy")["data"], {"id": "other", "owned_by": "proxy"}]}}
    server = WireServer(pages, completions([3]))
    async with server.serving(), engine_at(server, kind="vllm", model="other") as engine:
        assert text_of(await read(await engine.submit(job("abc")))) == "d"
        assert server.body["model"] == "other"
