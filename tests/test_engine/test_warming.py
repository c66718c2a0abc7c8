"""Steps at load that leave nothing behind."""

import gc
import sys

import pytest
import torch

from services import engine
from services.engine.execution.batched_runner import BatchedRunner
from services.engine.execution.padded_runner import PaddedRunner
from services.engine.execution.runner_factory import build_runner
from services.engine.execution.warm_up import warm_up
from tests.test_engine.fakes import Counting
from tests.test_engine.tiny_models import build


@pytest.mark.parametrize(("max_tokens", "sizes"), [(8, [8]), (512, [63])])
def test_a_full_prompt_and_a_full_batch(max_tokens: int, sizes: list[int]) -> None:
    seen: list[list[int]] = []
    runner = Counting(num_slots=3, before=lambda batch: seen.append([entry.num_tokens for entry in batch]))
    warm_up(runner, max_tokens)
    assert seen == [sizes, [1, 1, 1]]


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_nothing_is_left(name: str) -> None:
    runner = build_runner(build(name), num_slots=3, length=40, budget=2**30)
    warm_up(runner, 512)
    if isinstance(runner, BatchedRunner):
        assert not any(torch.count_nonzero(layer.keys[:, :, :40]) for layer in runner.cache.layers.values())
    else:
        assert isinstance(runner, PaddedRunner)
        assert not runner.num_cached


def test_collecting_garbage_goes_on_once_all_is_imported() -> None:
    try:
        gc.disable()  # as the command does
        engine.warm_up([("chat", "local"), ("embedding", "local")])
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.enable()
        gc.unfreeze()
    assert {"services.engine.local", "services.engine.embedding.embedder"} <= sys.modules.keys()
