"""Caches of any class, joined and taken apart again."""

from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from services.engine.execution import padding
from services.engine.execution.cache_layout import CacheLayout, SequenceState, UnsupportedCache
from services.engine.execution.growing_layer import MIN_SPARE, GrowingLayer, make_room
from services.engine.execution.padded_runner import PaddedRunner
from services.engine.execution.runner_factory import build_runner
from services.engine.execution.sequential_runner import cache_name
from services.engine.scheduling.step import ClearSlot, StepRow
from tests.test_engine.test_runner import prompt
from tests.test_engine.tiny_models import RECURRENT, build, build_kind
from tools.architectures import tiny
from tools.architectures.trial import Prompt

KINDS = {"sliding": "phimoe sliding", "recurrent and attention": "falcon_h1", "of its own class": "xlstm"}
LENGTHS = (3, 17, 9)  # of the window, which is 12: less, more, less


def model_of(name: str) -> Any:
    return build_kind(name, RECURRENT[name]) if name in RECURRENT else build(name)


@torch.no_grad()
def read(model: Any, ids: Tensor) -> Any:
    return getattr(model(input_ids=ids, use_cache=True), cache_name(model))


def tensors(layout: CacheLayout, cache: Any) -> list[Tensor]:
    return [follow(cache, path) for path in layout.tensors]


def follow(node: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        node = getattr(node, key) if hasattr(node, "__dict__") and not isinstance(node, dict) else node[key]
    return node


@pytest.mark.parametrize("name", KINDS.values(), ids=KINDS)
def test_what_was_joined_comes_apart_as_it_was(name: str) -> None:
    model = model_of(name)
    layout = CacheLayout.probe(lambda ids: read(model, ids))
    states = [SequenceState(read(model, torch.tensor([prompt(length)])), length) for length in LENGTHS]

    joined = layout.join(states)

    for row, state in enumerate(states):
        own = layout.copy(layout.split(joined, max(LENGTHS), row, state.length))
        for found, expected in zip(tensors(layout, own.cache), tensors(layout, state.cache), strict=True):
            torch.testing.assert_close(found, expected)
        for found, source in zip(tensors(layout, own.cache), tensors(layout, joined), strict=True):
            assert found.untyped_storage().data_ptr() != source.untyped_storage().data_ptr()
        for path in layout.counters:
            assert follow(own.cache, path) == follow(state.cache, path)


@pytest.mark.parametrize("kind", ["qwen3_next", "granitemoehybrid"])
def test_how_a_prompt_is_cut_does_not_change_what_follows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits a state is rounded wherever a chunk ends; the company of a step decides how long the chunks are."""
    monkeypatch.setattr(padding, "CHUNK", 64)
    model = tiny.build(kind).bfloat16()
    runner = build_runner(model, num_slots=2, length=200, budget=2**24)
    assert isinstance(runner, PaddedRunner)
    expected = answer(runner, [150])
    for sizes in ([57, 93], [64, 64, 22], [1, 63, 64, 22], [90, 59, 1]):
        assert torch.equal(answer(runner, sizes), expected)
    scored = answer(runner, [150], is_scored=True)
    assert scored.shape[0] == 154
    assert torch.equal(scored[-5:], expected)


def answer(runner: PaddedRunner, sizes: list[int], *, is_scored: bool = False) -> Tensor:
    """The logits behind a prompt that is read in such chunks, or of all of it, and behind a few more tokens."""
    tokens = Prompt(150, 4).tokens + Prompt(4, 1).tokens
    logits = []
    runner.apply([ClearSlot(0, 0, 200)])
    for size, end in zip([*sizes, 1, 1, 1, 1], accumulate([*sizes, 1, 1, 1, 1]), strict=True):
        num_logits = size if is_scored else int(end >= 150)
        found = runner.run([StepRow("a", 0, end - size, size, num_logits, tokens[end - size : end])])
        logits.append(found.clone())
    return torch.cat([each for each in logits if each.numel()])


def test_a_cache_is_cut_back_where_it_holds_every_token() -> None:
    model = build("bloom")
    layout = CacheLayout.probe(lambda ids: read(model, ids))
    state = SequenceState(read(model, torch.tensor([prompt(9)])), 9)

    cropped = layout.crop(state, 4)

    assert cropped is not None
    assert cropped.cache.get_seq_length() == 4
    for found, whole in zip(tensors(layout, cropped.cache), tensors(layout, state.cache), strict=True):
        torch.testing.assert_close(found, whole[:, :, :4])
    assert not layout.has_states


@pytest.mark.parametrize("name", ["phimoe sliding", "falcon_h1"])
def test_a_cache_that_holds_less_is_not_cut(name: str) -> None:
    """Beyond its window, and a state of all tokens."""
    model = model_of(name)
    layout = CacheLayout.probe(lambda ids: read(model, ids))

    assert layout.crop(SequenceState(read(model, torch.tensor([prompt(17)])), 17), 16) is None


def test_sequences_are_padded_where_their_tokens_have_places() -> None:
    assert CacheLayout.probe(lambda ids: read(build("bloom"), ids)).is_padded
    assert not CacheLayout.probe(lambda ids: read(model_of("mamba2"), ids)).is_padded


@pytest.mark.parametrize(
    "cache",
    [
        lambda ids: [torch.zeros(3)],  # nothing of a sequence
        lambda ids: [torch.zeros(4 * len(ids), 2)],  # heads and sequences in one
        lambda ids: [torch.zeros(len(ids), ids.shape[1], ids.shape[1])],
        lambda ids: [torch.zeros([1] * ids.shape[1])],
    ],
)
def test_a_cache_whose_sequences_cannot_be_told_apart_is_refused(cache: Any) -> None:
    with pytest.raises(UnsupportedCache):
        CacheLayout.probe(cache)


def test_a_growing_layer_says_what_transformers_own_says() -> None:
    own, growing = DynamicLayer(), GrowingLayer()
    generator = torch.Generator().manual_seed(0)
    for number in (5, 1, 1, MIN_SPARE, 1, 1):
        keys, values = (torch.randn(2, 3, number, size, generator=generator) for size in (4, 6))
        for found, expected in zip(growing.update(keys, values), own.update(keys, values), strict=True):
            torch.testing.assert_close(found, expected)
    assert growing.get_seq_length() == own.get_seq_length()


def test_a_growing_layer_copies_nothing_while_there_is_room() -> None:
    model = build("bloom")
    cache = make_room(read(model, torch.tensor([prompt(6)])))
    layer = cache.layers[0]
    new = torch.zeros(1, 4, 1, 8)
    first = layer.update(new, new)[0]

    assert layer.update(new, new)[0].data_ptr() == first.data_ptr()


def test_a_joined_layer_does_not_write_into_what_it_was_joined_from() -> None:
    model = build("bloom")
    layout = CacheLayout.probe(lambda ids: read(model, ids))
    one = make_room(read(model, torch.tensor([prompt(6)])))
    one.layers[0].update(torch.ones(1, 4, 1, 8), torch.ones(1, 4, 1, 8))
    one.layers[1].update(torch.ones(1, 4, 1, 8), torch.ones(1, 4, 1, 8))
    kept = layout.copy(SequenceState(one, 7))

    joined = layout.join([SequenceState(one, 7)])
    joined.layers[0].update(torch.zeros(1, 4, 1, 8), torch.zeros(1, 4, 1, 8))
    one.layers[0].update(torch.full((1, 4, 1, 8), 2.0), torch.full((1, 4, 1, 8), 2.0))

    assert joined.layers[0].keys[..., -1, :].eq(0).all()
    torch.testing.assert_close(one.layers[0].keys[..., :7, :], kept.cache.layers[0].keys)
