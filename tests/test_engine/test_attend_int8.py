"""Attention over keys and values of 8 bits says what it would over the numbers that they stand for."""

import pytest
import torch
from torch import Tensor

from services.engine.cpu import kernels
from services.engine.cpu.attention import Scoring
from services.engine.execution.kv_cache import SCALE_BYTES
from tests.test_engine.compilers import needs_compiler
from tests.test_engine.test_kernels import LENGTH, MIXED, SLOTS, TOLERANCE, expected, random

PLAIN = [False, True]  # with the instructions for it, where the processor has them, and without
CAPPED = Scoring(0.3, softcap=1.5)


def rounded(rows: Tensor) -> Tensor:
    flat = kernels.round_rows(rows.reshape(-1, 1, rows.shape[-1]))
    return flat.view(*rows.shape[:-1], -1)


def meant(rows: Tensor) -> Tensor:
    """The numbers that such rows stand for."""
    codes, scales = rows[..., :-SCALE_BYTES], rows[..., -SCALE_BYTES:].contiguous()
    return codes.float() * scales.view(torch.float32)


def memory(size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    keys = random(SLOTS, 2, LENGTH, size, dtype=dtype)
    values = random(SLOTS, 2, LENGTH + 1, size, dtype=dtype)[:, :, :LENGTH]
    return rounded(keys), rounded(values)


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_row_is_rounded_to_127_steps_of_its_largest_number(native_kernel: None, dtype: torch.dtype) -> None:
    rows = random(5, 3, 80, dtype=dtype) * torch.tensor([1, 1e-3, 100, 0, 1])[:, None, None]
    step = rows.abs().amax(-1, keepdim=True).float() / 127
    codes = kernels.round_rows(rows.to(dtype))
    assert codes.shape == (5, 3, 80 + SCALE_BYTES)
    assert ((meant(codes) - rows.to(dtype).float()).abs() <= step * 0.51).all()
    assert not codes[3].any()


@needs_compiler
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(native_kernel: None, bad: float) -> None:
    rows = random(2, 1, 64)
    rows[1, 0, 5] = bad
    assert meant(kernels.round_rows(rows)).isnan().all(-1)[:, 0].tolist() == [False, True]


@needs_compiler
@pytest.mark.parametrize("plain", PLAIN)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [8, 64, 80, 128, 256])
def test_any_mix(native_kernel: None, dtype: torch.dtype, size: int, plain: bool) -> None:
    check(random(len(MIXED), 6, size, dtype=dtype), *memory(size, dtype), Scoring(size**-0.5), plain)


@needs_compiler
@pytest.mark.parametrize("plain", PLAIN)
@pytest.mark.parametrize(
    "scoring", [CAPPED, Scoring(0.3, softcap=1.5, sinks=3 * random(6)), Scoring(0.3, sinks=random(6))]
)
def test_soft_capping_and_sinks(native_kernel: None, scoring: Scoring, plain: bool) -> None:
    check(random(len(MIXED), 6, 64), *memory(64), scoring, plain)


def check(queries: Tensor, keys: Tensor, values: Tensor, scoring: Scoring, plain: bool) -> None:
    slots, begins, ends = torch.tensor(MIXED).T
    said = kernels.attend(queries, keys, values, slots, begins, ends, scoring, plain=plain)
    assert said.dtype == queries.dtype
    tolerance = max(TOLERANCE[queries.dtype], 1e-3)  # queries and weights are rounded to 16 bits
    wanted = expected(queries, meant(keys), meant(values), MIXED, scoring)
    torch.testing.assert_close(said.float(), wanted, atol=tolerance, rtol=tolerance)


@needs_compiler
@pytest.mark.parametrize("plain", PLAIN)
def test_what_is_not_to_be_seen_may_be_anything(native_kernel: None, plain: bool) -> None:
    keys, values = memory(16)
    for tensor in (keys, values):
        tensor[:, :, 50:] = -1  # as a scale: not a number
        tensor[:, :, :3] = -1
    assert meant(keys).isnan().any()
    slots, begins, ends = torch.tensor([(i % 2, 3, 50 - i) for i in range(9)]).T
    said = kernels.attend(random(9, 4, 16), keys, values, slots, begins, ends, Scoring(0.3), plain=plain)
    assert said.isfinite().all()


@needs_compiler
@pytest.mark.parametrize("plain", PLAIN)
@pytest.mark.parametrize("window", [LENGTH, 100])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_no_bit_depends_on_the_company(native_kernel: None, dtype: torch.dtype, window: int, plain: bool) -> None:
    """With a window, too: what is rounded together begins at fixed places."""
    keys, values = memory(64, dtype)
    queries = random(len(MIXED), 6, 64, dtype=dtype)
    slots, _, ends = torch.tensor(MIXED).T
    begins = (ends - window).clamp(min=0)
    together = kernels.attend(queries, keys, values, slots, begins, ends, Scoring(0.3), plain=plain)
    for i in range(len(MIXED)):
        part = slice(i, i + 1)
        seen = slots[part], begins[part], ends[part]
        assert torch.equal(
            kernels.attend(queries[part], keys, values, *seen, Scoring(0.3), plain=plain), together[part]
        )
