"""The loss of rounding: only the chosen layers are rounded, for as long as they are measured."""

from collections.abc import Iterator
from statistics import fmean

import pytest
import torch

from services.engine.quantization.rounded_weights import FOUR
from tests.test_engine.tiny_models import build_kind
from tests.threads import computing_with
from tools.rounding_loss import Weights, losses, permute, trials

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.1, "tie_word_embeddings": True}
WINDOWS = [torch.arange(3, 40), torch.arange(80, 90)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with computing_with(1):
        yield


def test_a_permuted_model_is_the_same_function() -> None:
    model = build_kind("llama", SHAPE)
    before, weight = losses(model, WINDOWS), model.model.layers[0].mlp.down_proj.weight.clone()
    permute(model)
    assert not torch.equal(model.model.layers[0].mlp.down_proj.weight, weight)
    assert losses(model, WINDOWS) == pytest.approx(before, abs=1e-4)


def test_weights_are_rounded_while_they_are_measured() -> None:
    model = build_kind("llama", SHAPE)
    plain = {name: each.clone() for name, each in model.state_dict().items()}
    weights, down = Weights(model), "model.layers.0.mlp.down_proj"
    with weights.rounded(lambda name: FOUR if name == down else None) as num_bytes:
        changed = {name for name, each in model.state_dict().items() if not torch.equal(each, plain[name])}
    assert changed == {f"{down}.weight"}
    with weights.rounded(lambda name: None) as all_bytes:
        pass
    assert all_bytes - num_bytes == 64 * 96 * (16 - 5) / 8  # with a scale and a minimum for 32
    assert all(torch.equal(each, plain[name]) for name, each in model.state_dict().items())


def test_more_bits_cost_less() -> None:
    model = build_kind("llama", SHAPE)
    weights, plain, found = Weights(model), losses(model, WINDOWS), {}
    for trial in trials(model):
        with weights.rounded(trial.choose) as num_bytes:
            rises = [abs(new - old) for new, old in zip(losses(model, WINDOWS), plain, strict=True)]
            found[trial.name] = num_bytes, fmean(rises)
    (least, most), (eight, small) = found["all in 4 bits"], found["all in 8 bits"]
    assert least < found["as int4 rounds them"][0] < eight
    assert small < most / 4
    assert {"head in 4 bits", "v_proj in 4 bits", "last layer in 4 bits", "all in 4 bits, v_proj in 8"} <= found.keys()
