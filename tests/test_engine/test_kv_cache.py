import sys
from pathlib import Path

import pytest
import torch

from services.engine.execution.kv_cache import PAGE, LayerShape, SlotCache, fit
from services.engine.scheduling.step import CacheChange, ClearSlot, CopySlot, SwapSlots

SHAPE = LayerShape(num_heads=2, key_dim=8, value_dim=4, dtype=torch.bfloat16)


def test_a_token_takes_its_keys_and_its_values() -> None:
    assert SHAPE.num_bytes == 2 * (8 + 4) * 2


@pytest.mark.parametrize(("budget", "slots"), [(0, 0), (527, 0), (528, 1), (1583, 2), (10**9, 4)])
def test_slots_fit_into_a_budget(budget: int, slots: int) -> None:
    assert fit({0: SHAPE}, num_slots=4, length=10, budget=budget) == slots


def test_a_cache_is_laid_out_layer_by_layer_and_begins_with_zeros() -> None:
    other = LayerShape(num_heads=1, key_dim=3, value_dim=3, dtype=torch.float32)
    cache = SlotCache({0: SHAPE, 7: other}, num_slots=4, length=10, device=torch.device("cpu"))

    layer = cache.layers[0]
    assert (layer.keys.shape, layer.values.shape) == ((4, 2, 11, 8), (4, 2, 11, 4))  # and one position that is nobody's
    assert (layer.keys.dtype, cache.layers[7].keys.dtype) == (torch.bfloat16, torch.float32)
    assert not layer.keys.any()
    layer.keys[3] = 1
    assert layer.keys[3].all()
    assert not layer.keys[:3].any()


@pytest.fixture
def cache() -> SlotCache:
    """Slot s holds s + 1 everywhere."""
    wide = LayerShape(num_heads=2, key_dim=16, value_dim=32, dtype=torch.float32)  # several pages a head
    cache = SlotCache({0: SHAPE, 1: wide}, num_slots=3, length=400, device=torch.device("cpu"))
    for layer in cache.layers.values():
        for tensor in (layer.keys, layer.values):
            tensor += torch.arange(1, 4)[:, None, None, None]
    return cache


@pytest.mark.parametrize(
    ("change", "slots"),
    [
        (CopySlot(0, 2, 5), [[1] * 400, [2] * 400, [1] * 5 + [3] * 395]),
        (SwapSlots(0, 1, 150), [[2] * 150 + [1] * 250, [1] * 150 + [2] * 250, [3] * 400]),
        (ClearSlot(1, 0, 400), [[1] * 400, [0] * 400, [3] * 400]),
        (ClearSlot(1, 7, 330), [[1] * 400, [2] * 7 + [0] * 323 + [2] * 70, [3] * 400]),
        (ClearSlot(1, 7, 9), [[1] * 400, [2] * 7 + [0] * 2 + [2] * 391, [3] * 400]),
    ],
)
def test_changes(cache: SlotCache, change: CacheChange, slots: list[list[int]]) -> None:
    cache.apply([change])

    for layer in cache.layers.values():
        for tensor in (layer.keys, layer.values):
            for slot, expected in enumerate(slots):
                held = tensor[slot, :, :400].float()
                assert (held == torch.tensor(expected)[None, :, None]).all()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is not given back in parts")
def test_what_is_forgotten_costs_no_memory() -> None:
    shape = LayerShape(num_heads=4, key_dim=64, value_dim=64, dtype=torch.float32)
    cache = SlotCache({0: shape}, num_slots=2, length=4095, device=torch.device("cpu"))
    before = resident()
    cache.layers[0].keys[0].fill_(1)
    written = resident() - before
    cache.apply([ClearSlot(0, 0, 4095)])

    assert written >= 4 * 4095 * 64 * 4
    assert resident() - before < written / 4


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
