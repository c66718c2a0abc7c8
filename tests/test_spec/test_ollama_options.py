"""Ollama's options mean what they mean there."""

from typing import Any

import pytest

from services.engine.base import SamplingParams
from tests.apps import MODEL, Site
from tests.fakes import FakeEngine
from tests.pictures import RED, FakeReader

HI: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": False}


async def sampled_with(site: Site, engine: FakeEngine, **options: Any) -> tuple[SamplingParams, str]:
    """How the answer is sampled, and what is named as left aside."""
    answer = await site.client.post("/api/chat", json={**HI, "options": options})
    assert answer.status_code == 200, answer.text
    return engine.jobs[-1].sampling, answer.headers.get("x-parley-ignored", "")


@pytest.mark.parametrize("tokens", [0, -1, -2, -5])
async def test_no_limit(site: Site, engine: FakeEngine, tokens: int) -> None:
    params, _ = await sampled_with(site, engine, num_predict=tokens)
    assert params.max_tokens is None


async def test_temperatures_and_shares_have_its_range(site: Site, engine: FakeEngine) -> None:
    params, _ = await sampled_with(site, engine, temperature=3, top_p=0)
    assert (params.temperature, params.top_p) == (3, 0)


async def test_stop_sequences_are_as_many_as_there_are(site: Site, engine: FakeEngine) -> None:
    stops = [f"s{index}" for index in range(6)]
    params, ignored = await sampled_with(site, engine, stop=stops)
    assert (params.stop, ignored) == (tuple(stops), "")


@pytest.mark.parametrize(
    ("options", "ignored"),
    [
        ({"repeat_last_n": 64, "repeat_penalty": 1.1}, "options.repeat_last_n"),
        ({"repeat_last_n": 64, "presence_penalty": 1}, "options.repeat_last_n"),
        ({"repeat_last_n": 64}, ""),
        ({"repeat_last_n": -1, "repeat_penalty": 1.1}, ""),
        ({"typical_p": 0.7, "tfs_z": 2}, "options.tfs_z, options.typical_p"),
        ({"typical_p": 1, "tfs_z": 1.0}, ""),
        ({"num_ctx": 4096, "low_vram": True}, "options.low_vram, options.num_ctx"),
    ],
    ids=str,
)
async def test_what_is_left_aside_is_named(
    site: Site, engine: FakeEngine, options: dict[str, Any], ignored: str
) -> None:
    assert (await sampled_with(site, engine, **options))[1] == ignored


async def test_a_window_of_nothing_is_no_penalty(site: Site, engine: FakeEngine) -> None:
    penalties = {"repeat_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": 3}
    params, _ = await sampled_with(site, engine, repeat_last_n=0, **penalties)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1, 0, 0)
    params, _ = await sampled_with(site, engine, **penalties)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.5, 1, 3)


@pytest.mark.parametrize("think", [True, "high"])
async def test_a_model_that_does_not_think_leaves_the_wish_aside(site: Site, think: object) -> None:
    answer = await site.client.post("/api/chat", json={**HI, "think": think})
    assert (answer.status_code, answer.headers["x-parley-ignored"]) == (200, "think")


async def test_hints_of_tools_are_named(site: Site) -> None:
    function = {"name": "f", "parameters": {"type": "object"}, "strict": True}
    answer = await site.client.post("/api/chat", json={**HI, "tools": [{"type": "function", "function": function}]})
    assert answer.headers["x-parley-ignored"] == "tools.0.function.strict"


async def test_an_image_that_a_tool_returns_is_seen(site: Site, engine: FakeEngine) -> None:
    engine.images = FakeReader()
    turn = [
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [{"function": {"name": "look"}}]},
        {
            "role": "tool",
            "tool_name": "look",
            "content": "a picture",
            "images": [RED["image_url"]["url"].split(",")[1]],
        },
    ]
    answer = await site.client.post("/api/chat", json={**HI, "messages": [*HI["messages"], *turn]})
    assert answer.status_code == 200, answer.text
    assert len(engine.jobs[0].images) == 1
