"""Packed layers say what the plain ones said, siblings too, and can be unpacked again."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from services.engine.cpu.merged_linear import LinearSlice, PackedLinear, pack_linears, packed_weights, unpack_linears


class Layer(nn.Module):
    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(16, size, bias=bias) for size in (24, 8, 8))
        self.o_proj = nn.Linear(24, 16, bias=bias)

    def forward(self, inputs: Tensor) -> Tensor:
        query, key, value = self.q_proj(inputs), self.k_proj(inputs), self.v_proj(inputs)
        return self.o_proj(query + torch.cat([key, value, key], dim=-1))


@pytest.fixture(params=[False, True], ids=["without bias", "with bias"])
def plain(request: pytest.FixtureRequest) -> Layer:
    torch.manual_seed(0)
    return Layer(bias=request.param)


@pytest.fixture
def packed(plain: Layer) -> Layer:
    layer = copy.deepcopy(plain)
    with torch.no_grad():
        pack_linears(layer)
    return layer


@torch.no_grad()
def test_packed_says_the_same(plain: Layer, packed: Layer) -> None:
    inputs = torch.randn(5, 16)
    torch.testing.assert_close(packed(inputs), plain(inputs))


def test_siblings_are_one_product(packed: Layer) -> None:
    assert isinstance(packed.k_proj, LinearSlice)
    assert list(packed_weights(packed)) == ["q_proj.packed", "o_proj"]


def test_a_lone_layer_is_packed_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    pack_linears(model)
    assert isinstance(model[0], PackedLinear)


@torch.no_grad()
def test_siblings_of_different_inputs_are_noticed(packed: Layer) -> None:
    packed.q_proj(torch.randn(5, 16))
    with pytest.raises(RuntimeError, match="different inputs"):
        packed.k_proj(torch.randn(5, 16))


@torch.no_grad()
def test_unpacked_is_what_it_was(plain: Layer, packed: Layer) -> None:
    unpack_linears(packed)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(packed.state_dict()[name], value)


def test_threads_do_not_meet(plain: Layer, packed: Layer) -> None:
    inputs = [torch.randn(3, 16) for _ in range(200)]

    @torch.no_grad()
    def both(each: Tensor) -> tuple[Tensor, Tensor]:
        return packed(each), plain(each)

    with ThreadPoolExecutor(4) as pool:
        for one, other in pool.map(both, inputs):
            torch.testing.assert_close(one, other)
