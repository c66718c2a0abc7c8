"""A prompt's own log-probabilities are those of one forward pass, in chunks and beside others."""

import asyncio
from math import isnan
from typing import Any

import pytest
import torch

from services.engine.base import Job, Piece, SamplingParams
from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.runner import Runner
from services.engine.execution.runner_factory import build_runner
from services.engine.execution.sequential_runner import SequentialRunner
from services.engine.local import LocalEngine
from services.engine.paged.runner import PagingConfig
from tests.test_engine import fakes
from tests.test_engine.recorder import Recorder
from tests.test_engine.tiny_models import build
from tests.test_engine.tiny_tokenizers import byte_level

PROMPTS = [tuple(3 + index * 7 % (150 - many) for index in range(many)) for many in (23, 1, 2, 9, 30)]


def runner(kind: str, model: Any) -> Runner:
    if kind == "one by one":
        return SequentialRunner(model, 3, 64)
    return build_runner(
        model, num_slots=3, length=64, budget=2**30, paging=PagingConfig(4, Recorder()) if kind == "paged" else None
    )


@pytest.mark.parametrize("kind", ["together", "one by one", "paged"])
async def test_they_are_those_of_one_forward_pass(kind: str) -> None:
    model, tokenizer = build("llama"), byte_level()
    loaded = fakes.loaded(model, tokenizer, eos=len(tokenizer))
    engine = LocalEngine(loaded, LocalExecutor(runner(kind, model)), max_num_batched_tokens=8, max_queue=16)
    engine.start()

    async def ask(prompt: tuple[int, ...], number: int | None) -> list[Piece]:
        params = SamplingParams(max_tokens=3, temperature=0, prompt_logprobs=number)
        return [piece async for piece in await engine.submit(Job("job", prompt, params))]

    await ask(PROMPTS[0], None)  # what it leaves in the cache is not to be found
    answers = await asyncio.gather(
        *(ask(prompt, 2) for prompt in PROMPTS), *(ask(prompt, None) for prompt in PROMPTS), ask(PROMPTS[0], 0)
    )
    await engine.stop()
    for prompt, scored, plain in zip(PROMPTS, answers, answers[len(PROMPTS) :], strict=False):
        assert [piece.token_ids for piece in scored] == [piece.token_ids for piece in plain]
        assert not any(piece.prompt for piece in [*scored[1:], *plain])
        _check(build("llama"), prompt, scored[0])  # the engine has made the other its own
    assert [each.top for each in answers[-1][0].prompt] == [()] * len(PROMPTS[0])


def _check(model: Any, prompt: tuple[int, ...], piece: Piece) -> None:
    with torch.inference_mode():
        logprobs = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    first, *others = piece.prompt
    assert isnan(first.logprob)
    assert first.top == ()
    expected = [float(logprobs[index, token]) for index, token in enumerate(prompt[1:])]
    assert [each.logprob for each in others] == pytest.approx(expected, abs=1e-4)
    tops = [[top.logprob for top in each.top] for each in others]
    assert tops == [pytest.approx(row.topk(2).values.tolist(), abs=1e-4) for row in logprobs[:-1]]
