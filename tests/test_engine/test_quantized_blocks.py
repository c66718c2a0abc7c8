"""Weights in blocks of 4 to 8 bits: products and rows are those of the dequantised weight, whatever computes them."""

from dataclasses import replace
from shutil import which

import pytest
import torch
from torch import Tensor, nn

from services.engine.quantization.block_layers import BlockEmbedding, BlockLinear, instructions
from services.engine.quantization.quantized_blocks import FORMATS, PackedBlocks, QuantizedBlocks, factor_of, pack

pytestmark = [
    pytest.mark.skipif(which("g++") is None, reason="no C++ compiler"),
    pytest.mark.usefixtures("native_kernel"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

BLOCK = 32  # inputs that are rounded together
SHAPES = [(64, 64), (33, 70), (130, 576)]  # outputs, inputs
ROWS = [1, 2, 3, 4, 5, 31]
PART = 20  # outputs that are packed at once


def blocks_of(form: tuple[int, int, bool], outputs: int, inputs: int) -> QuantizedBlocks:
    bits, group, has_minima = form
    random = torch.Generator().manual_seed(outputs)
    codes = torch.randint(0, 2**bits, (outputs, inputs), dtype=torch.uint8, generator=random)
    shape = (outputs, -(-inputs // group))
    scales = torch.rand(shape, generator=random).half() / 100
    minima = torch.randn(shape, generator=random).half() / 20 if has_minima else None
    return QuantizedBlocks(codes, scales, minima, bits, group, zero=0 if has_minima else 2 ** (bits - 1))


def packed(blocks: QuantizedBlocks) -> PackedBlocks:
    outputs, inputs = blocks.codes.shape
    parts = (blocks.rows(part) for part in torch.arange(outputs).split(PART))
    return pack(parts, outputs, inputs, factor_of(blocks.scales, blocks.minima))


def inputs_of(rows: int, size: int) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(rows))


def rounded(inputs: Tensor) -> Tensor:
    """To 8 bits, block by block, in float64."""
    blocks = nn.functional.pad(inputs.float(), (0, -inputs.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    largest = blocks.abs().amax(-1, keepdim=True)
    codes = (blocks * (torch.tensor(127.0) / largest)).nan_to_num().round()
    return (codes.double() * (largest / 127).double()).flatten(1)[:, : inputs.shape[1]]


def product(inputs: Tensor, weight: PackedBlocks, path: str = "") -> Tensor:
    out: Tensor = torch.ops.parley.quantized_linear(
        inputs, weight.codes, weight.scales, None, weight.outputs, *weight.arguments, None, path
    )
    return out


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("form", sorted(FORMATS))
@torch.inference_mode()
def test_products_of_all_instructions(form: tuple[int, int, bool], outputs: int, inputs: int) -> None:
    blocks = blocks_of(form, outputs, inputs)
    weight = packed(blocks)
    assert torch.equal(weight.dequantize(), blocks.dequantize())
    for rows in ROWS:
        given = inputs_of(rows, inputs)
        expected = rounded(given) @ blocks.dequantize(torch.float64).T
        for path in instructions():
            assert difference(product(given, weight, path), expected) < 1e-6, (rows, path)
        assert difference(product(given, weight), given @ blocks.dequantize().T) < 0.02


@pytest.mark.parametrize("form", sorted(FORMATS))
@torch.inference_mode()
def test_no_bit_of_a_product_depends_on_the_company(form: tuple[int, int, bool]) -> None:
    weight, given = packed(blocks_of(form, 130, 2100)), inputs_of(31, 2100)
    for path in instructions():
        together = product(given, weight, path)
        for rows in (1, 2, 3, 7):
            for first in range(0, 31 - rows, rows):
                part = slice(first, first + rows)
                assert torch.equal(product(given[part], weight, path), together[part]), path


@torch.inference_mode()
def test_layers_take_and_give_any_numbers() -> None:
    blocks = blocks_of((4, 32, True), 33, 70)
    weight, bias, given = packed(blocks), inputs_of(1, 33)[0], inputs_of(6, 70)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        inputs = given.to(dtype)
        expected = rounded(inputs) @ blocks.dequantize(torch.float64).T + bias.double()
        out = BlockLinear(weight, bias)(inputs.view(2, 3, 70))
        assert out.dtype == dtype
        assert difference(out.view(6, 33), expected.to(dtype)) < (1e-6 if dtype == torch.float32 else 1e-3)
        unrounded = BlockLinear(weight, bias, dtype=torch.float32)(inputs)
        assert difference(unrounded, expected) < 1e-6
    assert BlockLinear(weight)(given[:0]).shape == (0, 33)


@torch.inference_mode()
def test_embeddings_unpack_their_rows() -> None:
    blocks = blocks_of((6, 16, False), 130, 70)
    ids, scale = torch.tensor([[0, 129, 17], [5, 5, 64]]), torch.tensor(7.5)
    expected = blocks.dequantize()[ids]
    assert torch.equal(BlockEmbedding(packed(blocks), torch.float32)(ids), expected)
    assert torch.equal(BlockEmbedding(packed(blocks), torch.bfloat16)(ids), expected.bfloat16())
    assert torch.equal(BlockEmbedding(packed(blocks), torch.float32, scale)(ids), expected * scale)
    with pytest.raises(IndexError, match="no row 130"):
        BlockEmbedding(packed(blocks), torch.float32)(torch.tensor([130]))


@torch.inference_mode()
def test_zeros_stay_zeros_and_what_is_no_number_shows() -> None:
    weight, given = packed(blocks_of((4, 32, True), 33, 70)), inputs_of(4, 70)
    given[0], given[1, 3], given[2, 69] = 0, torch.nan, torch.inf
    for path in instructions():
        out = product(given, weight, path)
        assert out[0].eq(0).all()
        assert out[1:3].isnan().all()
        assert out[3].isfinite().all()


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e30])
def test_scales_of_any_size(size: float) -> None:
    blocks = blocks_of((4, 32, True), 64, 64)
    assert blocks.minima is not None
    blocks = replace(blocks, scales=blocks.scales.float() * size, minima=(blocks.minima.float() * size).bfloat16())
    assert difference(packed(blocks).dequantize(), blocks.dequantize()) < 3e-4  # float16's last bit


def test_wider_groups_are_repeated() -> None:
    blocks = blocks_of((4, 32, False), 16, 300)
    wide = replace(blocks, scales=blocks.scales[:, :3], group=128)
    assert torch.equal(wide.repeated_groups().dequantize(), wide.dequantize())
    assert packed(wide.repeated_groups()).nbytes == 16 * 320 * 18 // 32


@pytest.mark.parametrize("outputs", [63, 65])
def test_parts_that_are_another_layer_are_refused(outputs: int) -> None:
    blocks = blocks_of((4, 32, True), 64, 64)
    with pytest.raises((ValueError, RuntimeError), match="outputs"):
        pack([blocks], outputs, 64)


def test_formats_without_a_kernel_are_refused() -> None:
    blocks = blocks_of((4, 32, True), 16, 64)
    with pytest.raises(ValueError, match=r"no kernel for .*bits=3"):
        pack([replace(blocks, bits=3)], 16, 64)
