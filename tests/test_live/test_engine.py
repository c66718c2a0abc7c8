"""The default model through the engine: compiled steps and draft tokens change no token of eager steps."""

from pathlib import Path
from typing import Any, Literal

import pytest

from services.engine.base import Job, SamplingParams
from services.engine.cpu import kernels
from services.engine.local import LocalEngine
from tests.test_engine.compilers import needs_compiler
from tests.test_live.engine import serving
from tests.test_live.service import MODELS

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]

PROMPTS = (
    "Name the planets of the solar system, the nearest to the sun first.",
    "Count from one to forty in words.",
    "Say 'the cat sat on the mat' five times.",
    "What is the capital of France, and what is it known for?",
    "Write a short story about a lighthouse keeper.",
)
Quantization = Literal["int8"] | None
CLOSE = 0.5  # nats between two tokens, below which bfloat16 may round either way


async def ids(engine: LocalEngine, question: str) -> tuple[int, ...]:
    tokenizer: Any = engine.tokenizer
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    return tuple(prompt["input_ids"] if not isinstance(prompt, list) else prompt)


async def answer(engine: LocalEngine, question: str) -> list[int]:
    sampling = SamplingParams(max_tokens=48, temperature=0, ignore_eos=True)
    pieces = [piece async for piece in await engine.submit(Job("job", await ids(engine, question), sampling))]
    return [token for piece in pieces for token in piece.token_ids]


async def shortfalls(engine: LocalEngine, question: str, tokens: list[int]) -> list[float]:
    """By how many nats each token of an answer is less likely than the likeliest, with those before it as they are."""
    prompt = await ids(engine, question)
    sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1)
    pieces = [piece async for piece in await engine.submit(Job("job", (*prompt, *tokens), sampling))]
    scored = [token for piece in pieces for token in piece.prompt][len(prompt) :]
    assert len(scored) == len(tokens)
    return [each.top[0].logprob - each.logprob for each in scored]


async def answers(compile_dir: Path | None, speculation: bool, quantization: Quantization) -> list[list[int]]:
    folder = str(compile_dir) if compile_dir else None  # the service's own: what it compiled is taken
    async with serving(speculation=speculation, compile_dir=folder, quantization=quantization) as engine:
        tokens = [await answer(engine, question) for question in PROMPTS]
        assert (engine.stats().accepted > 0) is speculation
    return tokens


@pytest.mark.extended
@needs_compiler
@pytest.mark.parametrize("quantization", [None, "int8"])
async def test_compiled_steps_and_drafts_change_no_token(models: None, quantization: Quantization) -> None:
    kernels.ensure_loaded(MODELS / "compiled")  # int8 is the same kernel's in all three
    compiled = await answers(MODELS / "compiled", speculation=False, quantization=quantization)
    drafted = await answers(MODELS / "compiled", speculation=True, quantization=quantization)
    assert drafted == compiled
    async with serving(speculation=False, compile_dir=None, quantization=quantization) as eager:
        for question, tokens in zip(PROMPTS, compiled, strict=True):
            assert max(await shortfalls(eager, question, tokens)) < CLOSE
