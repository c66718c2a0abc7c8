"""What is asked of torch's kernel, by its documentation, comes to the same as the plain lines."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from services.engine.paged import attention as paged_attention
from services.engine.paged.attention import PagedRows

HEADS = 2  # of keys and values
DIM = 8
PAGE = 256
KEYS, VALUES = torch.randn(2, 8, PAGE, HEADS, DIM, generator=torch.Generator().manual_seed(0))


def documented(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
    block_table: Tensor,
    num_splits: int | None,
) -> Tensor:
    """`varlen_attn` as FlashAttention 2 takes it, with what it checks and what goes wrong in it."""
    for ints in (cu_seq_q, cu_seq_k, seqused_k, block_table):
        assert ints.dtype == torch.int32
        assert ints.is_contiguous()
    assert key.shape[1] % 256 == 0
    assert cu_seq_k.diff().tolist() == seqused_k.tolist()
    assert enable_gqa is (query.shape[1] != key.shape[2])
    assert num_splits == 1 or (max_q == 1 and enable_gqa and window_size == (-1, -1))
    left, right = window_size
    out = []
    for (start, end), pages, used in zip(pairwise(cu_seq_q.tolist()), block_table, seqused_k.tolist(), strict=True):
        assert end - start <= max_q
        keys, values = (bank[pages].flatten(0, 1)[: min(used, max_k)].transpose(0, 1) for bank in (key, value))
        at, to = torch.arange(used - (end - start), used)[:, None], torch.arange(keys.shape[1])
        seen = (at - to <= left if left >= 0 else True) & (to - at <= right if right >= 0 else to >= 0)
        q = query[start:end].transpose(0, 1)
        out.append(scaled_dot_product_attention(q, keys, values, seen, scale=scale, enable_gqa=enable_gqa))
    return torch.cat([each.transpose(0, 1) for each in out])


def rows(steps: list[tuple[int, int]]) -> PagedRows:
    """Of (new tokens, all tokens) of each sequence."""
    counts, lengths = torch.tensor(steps, dtype=torch.int32).T.contiguous()
    starts = [torch.nn.functional.pad(each.cumsum(0, dtype=torch.int32), (1, 0)) for each in (counts, lengths)]
    table = torch.tensor([[3, 1], [5, 0], [2, 7]], dtype=torch.int32)[: len(steps)]
    return PagedRows(*starts, lengths, table, int(counts.max()), int(lengths.max()))


@pytest.mark.parametrize("heads", [HEADS, 3 * HEADS], ids="{} heads".format)
@pytest.mark.parametrize("window", [None, 1, 7, 300], ids="window {}".format)
@pytest.mark.parametrize(
    "steps",
    [[(1, 1), (1, 256), (1, 500)], [(5, 5), (1, 257), (40, 300)], [(2, 300)]],
    ids=["answers", "mixed", "guess"],
)
def test_the_kernel_is_asked_for_the_same(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[int, int]], window: int | None, heads: int
) -> None:
    monkeypatch.setattr(paged_attention, "varlen_attn", documented)
    queries = torch.randn(sum(new for new, _ in steps), heads, DIM)
    given: Any = (queries, KEYS, VALUES, rows(steps), 0.3, window)

    torch.testing.assert_close(paged_attention.flash(*given), paged_attention.plain(*given))


def test_each_token_sees_what_is_before_it_in_the_window() -> None:
    """Keys that are all alike: what comes out is the mean of the values that are seen."""
    values = torch.arange(4.0)[None, :, None, None].expand(1, 4, 1, 2)
    queries, keys = torch.ones(2, 1, 2), torch.zeros(1, 4, 1, 2)
    step = PagedRows(*(torch.tensor(each, dtype=torch.int32) for each in ([0, 2], [0, 4], [4], [[0]])), 2, 4)

    assert paged_attention.attend(queries, keys, values, step, None, None)[:, 0, 0].tolist() == [1, 1.5]
    assert paged_attention.attend(queries, keys, values, step, None, 2)[:, 0, 0].tolist() == [1.5, 2.5]
