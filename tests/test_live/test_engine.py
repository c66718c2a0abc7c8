"""The default model through the engine: compiled steps and guesses say what its eager steps say, token by token."""

from pathlib import Path
from typing import Any, Literal

import pytest

from services.engine.base import Job, SamplingParams, TokenLogprob
from services.engine.cpu import kernel
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
CLOSE = 0.5  # nats between two tokens, below which bfloat16 may round either way


async def answer(engine: LocalEngine, question: str) -> tuple[list[int], list[TokenLogprob]]:
    tokenizer: Any = engine.tokenizer
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    ids = tuple(prompt["input_ids"] if not isinstance(prompt, list) else prompt)
    sampling = SamplingParams(max_tokens=48, temperature=0, logprobs=2, ignore_eos=True)
    pieces = [piece async for piece in await engine.submit(Job("job", ids, sampling))]
    tokens = [token for piece in pieces for token in piece.token_ids]
    return tokens, [logprob for piece in pieces for logprob in piece.logprobs]


def agree(tokens: list[int], expected: list[int], weights: list[TokenLogprob]) -> bool:
    """Up to the first place where two tokens are as good as equally likely."""
    for token, wanted, weight in zip(tokens, expected, weights, strict=False):
        if token != wanted:
            best, second = (each.logprob for each in weight.top)
            return best - second < CLOSE
    return True


async def answers(
    compile_dir: Path | None, speculation: bool, quantization: Literal["int8"] | None
) -> list[tuple[list[int], list[TokenLogprob]]]:
    folder = str(compile_dir) if compile_dir else None  # the service's own: what it compiled is taken
    async with serving(speculation=speculation, compile_dir=folder, quantization=quantization) as engine:
        said = [await answer(engine, question) for question in PROMPTS]
        assert (engine.stats().accepted > 0) is speculation
    return said


@needs_compiler
@pytest.mark.parametrize("quantization", [None, "int8"])
async def test_compiled_steps_and_guesses_change_no_token(models: None, quantization: Literal["int8"] | None) -> None:
    kernel.get(MODELS / "compiled")  # int8 is the same kernel's in all three
    eager = await answers(None, speculation=False, quantization=quantization)
    compiled = await answers(MODELS / "compiled", speculation=False, quantization=quantization)
    guessed = await answers(MODELS / "compiled", speculation=True, quantization=quantization)
    assert [tokens for tokens, _ in guessed] == [tokens for tokens, _ in compiled]
    for (expected, weights), (tokens, _) in zip(eager, compiled, strict=True):
        assert agree(tokens, expected, weights)
