import pytest
import torch

from services.engine.kv_cache import LayerShape, SlotCache, fit

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
