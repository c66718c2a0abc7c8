"""Attention over pages, for any mix of prompts and answers in one call.

On CUDA by torch's own flash attention, which has these limits (torch 2.13, FlashAttention 2): compute capability 8.0,
halves only, heads of at most 256 that are a multiple of 8, pages of a multiple of 256. Elsewhere by a few plain lines.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from services.engine.cpu.attention import causal_mask

PAGE_SIZE = 256


@dataclass(frozen=True, slots=True)
class PagedRows:
    """Whose tokens are where. All tensors are int32."""

    query_starts: Tensor  # [sequences + 1]: the new tokens of each, one after another
    key_starts: Tensor  # [sequences + 1]: the same of all its tokens
    lengths: Tensor  # [sequences]: all its tokens
    table: Tensor  # [sequences, pages]
    max_queries: int
    max_length: int  # of any sequence; what is beyond would not be seen


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, rows: PagedRows, scale: float | None, window: int | None
) -> Tensor:
    """`queries` [tokens, heads, dim], `keys` and `values` [pages, page size, key/value heads, dim] -> like `queries`.

    The new tokens are the last of each sequence; they see themselves and what is before, as far as the window goes.
    """
    function = flash if queries.is_cuda else plain
    return function(queries, keys, values, rows, scale, window)


def flash(
    queries: Tensor, keys: Tensor, values: Tensor, rows: PagedRows, scale: float | None, window: int | None
) -> Tensor:
    grouped = queries.shape[1] > keys.shape[2]
    # One new token each sees all there is. Without a window, the query heads of a group are attended together
    # and long sequences by several blocks each; everywhere else several blocks write wrong results
    # (pytorch issue 194167), so there is one.
    alone = rows.max_queries == 1 and window is None
    out = varlen_attn(
        queries,
        keys,
        values,
        rows.query_starts,
        rows.key_starts,  # not read, but it must be there
        rows.max_queries,
        rows.max_length,
        scale=scale,
        window_size=(-1, -1) if alone else (-1 if window is None else window - 1, 0),
        enable_gqa=grouped,
        seqused_k=rows.lengths,
        block_table=rows.table,
        num_splits=None if alone and grouped else 1,
    )
    assert isinstance(out, Tensor)
    return out


def plain(
    queries: Tensor, keys: Tensor, values: Tensor, rows: PagedRows, scale: float | None, window: int | None
) -> Tensor:
    starts, lengths = rows.query_starts.tolist(), rows.lengths.tolist()
    out = queries.new_empty(*queries.shape[:2], values.shape[-1])
    for pages, length, start, end in zip(rows.table, lengths, starts, starts[1:], strict=False):
        assert length <= rows.max_length
        assert end - start <= rows.max_queries
        out[start:end] = _one(queries[start:end], keys[pages], values[pages], length, scale, window)
    return out


def _one(queries: Tensor, keys: Tensor, values: Tensor, length: int, scale: float | None, window: int | None) -> Tensor:
    keys, values = (pages.flatten(0, 1)[:length].transpose(0, 1) for pages in (keys, values))
    positions = torch.arange(length - len(queries), length, device=queries.device)
    out = scaled_dot_product_attention(
        queries.transpose(0, 1)[None],
        keys[None],
        values[None],
        attn_mask=causal_mask(positions[:, None], length, window),
        scale=scale,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)
