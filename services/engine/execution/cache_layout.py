"""Where a model's own cache has its sequences and their tokens, learned by trying: any class of cache can be batched.

Sequences of different lengths stand in one batch as `generate` would have them: aligned at their last tokens, with
padding on the left. States that have no place for each token (recurrent, convolution) need none.
"""

import copy
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedConfig

Path = tuple[Hashable, ...]
Combine = Callable[[Path, list[Any]], Any]
TokenPaths = frozenset[Path]  # of tensors that have a place for each token

OPAQUE = (type, FunctionType, MethodType, ModuleType, PreTrainedConfig, nn.Module, torch.dtype, torch.device)
TRIED_TOKENS = 5


class UnsupportedCache(Exception):
    """Sequences cannot be told apart in it."""


@dataclass(frozen=True, slots=True)
class SequenceState:
    """A model's cache after so many tokens of one sequence."""

    cache: Any
    length: int


@dataclass(frozen=True, slots=True)
class Axes:
    """Of a tensor in a cache."""

    batch: int
    tokens: int | None  # None: its size does not depend on the number of tokens


@dataclass(frozen=True, slots=True)
class CacheLayout:
    tensors: Mapping[Path, Axes]
    counters: frozenset[Path]  # numbers that grow by one for each token
    token_bytes: int = 0  # of each token of a sequence
    state_bytes: int = 0  # and of all together

    @classmethod
    def probe(cls, read: Callable[[Tensor], Any]) -> "CacheLayout":
        """`read`: from token ids [batch, tokens] to the cache after them. Raises UnsupportedCache."""
        ids = torch.arange(1, TRIED_TOKENS + 2)[None]
        tensors: dict[Path, Axes] = {}
        counters: set[Path] = set()
        token_bytes = state_bytes = 0

        def compare(path: Path, leaves: list[Any]) -> Any:
            nonlocal token_bytes, state_bytes
            if all(isinstance(leaf, Tensor) for leaf in leaves) and (axes := _axes(*leaves)):
                tensors[path] = axes
                token_bytes += leaves[2].nbytes - leaves[0].nbytes
                state_bytes += leaves[0].nbytes if axes.tokens is None else 0
            elif _number(leaves[2]) == _number(leaves[0]) + 1:
                counters.add(path)
            return leaves[0]

        _combine(compare, [read(ids[:, :-1]), read(ids[:, :-1].repeat(2, 1)), read(ids)])
        if not tensors:
            raise UnsupportedCache("its cache holds nothing of a sequence")
        return cls(tensors, frozenset(counters), token_bytes, state_bytes)

    @property
    def is_padded(self) -> bool:
        """Whether sequences of different lengths need padding."""
        return any(axes.tokens is not None for axes in self.tensors.values())

    @property
    def has_states(self) -> bool:
        """Whether some of it is of all tokens together, and cannot be cut back to fewer."""
        return any(axes.tokens is None for axes in self.tensors.values())

    def join(self, states: list[SequenceState]) -> Any:
        """One cache with a row for each, as if all were as long as the longest."""
        longest = max(range(len(states)), key=lambda index: states[index].length)

        def joined(path: Path, leaves: list[Any]) -> Any:
            axes = self.tensors.get(path)
            return leaves[longest] if axes is None else _stack(leaves, axes)

        return _combine(joined, [state.cache for state in states])

    def split(self, cache: Any, length: int, row: int, own_length: int) -> SequenceState:
        """One row of a cache of `length` tokens without its padding; its tensors are views."""
        padding = length - own_length

        def own(path: Path, leaves: list[Any]) -> Any:
            (leaf,) = leaves
            if path in self.counters:
                return leaf - padding
            axes = self.tensors.get(path)
            if axes is None:
                return leaf
            part = leaf.narrow(axes.batch, row, 1)
            if axes.tokens is None:
                return part
            size = part.shape[axes.tokens]
            kept = min(size, own_length)  # of a window, all tokens in it may be the sequence's own
            return part.narrow(axes.tokens, size - kept, kept)

        return SequenceState(_combine(own, [cache]), own_length)

    def crop(self, state: SequenceState, length: int) -> SequenceState | None:
        """Its first tokens, in views; None where it does not hold them all."""
        whole = True

        def first(path: Path, leaves: list[Any]) -> Any:
            nonlocal whole
            (leaf,) = leaves
            if path in self.counters:
                return leaf - (state.length - length)
            axes = self.tensors.get(path)
            if axes is None:
                return leaf
            whole = whole and axes.tokens is not None and leaf.shape[axes.tokens] == state.length
            return leaf.narrow(axes.tokens, 0, length) if whole else leaf

        cropped = _combine(first, [state.cache])
        return SequenceState(cropped, length) if whole else None

    def copy(self, state: SequenceState) -> SequenceState:
        """With memory of its own."""

        def cloned(path: Path, leaves: list[Any]) -> Any:
            return leaves[0].clone() if isinstance(leaves[0], Tensor) else leaves[0]

        return SequenceState(_combine(cloned, [state.cache]), state.length)

    def tail(self, state: SequenceState, start: int) -> tuple[Any, TokenPaths]:
        """A copy whose tensors with a place for each token begin behind the first `start`; with the paths of these."""
        paths = set()

        def behind(path: Path, leaves: list[Any]) -> Any:
            (leaf,) = leaves
            if not isinstance(leaf, Tensor):
                return leaf
            if (axis := self._token_axis(path)) is None or leaf.shape[axis] != state.length:  # beyond a window, whole
                return leaf.clone()
            paths.add(path)
            return leaf.narrow(axis, start, state.length - start).clone()

        return _combine(behind, [state.cache]), frozenset(paths)

    def concatenate(self, tails: list[Any], paths: TokenPaths) -> Any:
        """The cache of the last of these tails, each of which begins where the one before it ends; a copy."""

        def joined(path: Path, leaves: list[Any]) -> Any:
            last, axis = leaves[0], self._token_axis(path)
            if path in paths and axis is not None:
                return torch.cat(leaves[::-1], dim=axis)
            return last.clone() if isinstance(last, Tensor) else last

        return _combine(joined, tails[::-1])

    def without_states(self, tail: Any, paths: TokenPaths) -> Any:
        """Only what is needed of it where another one continues it."""

        def kept(path: Path, leaves: list[Any]) -> Any:
            return None if isinstance(leaves[0], Tensor) and path not in paths else leaves[0]

        return _combine(kept, [tail])

    def num_bytes(self, cache: Any) -> int:
        number = 0

        def count(path: Path, leaves: list[Any]) -> Any:
            nonlocal number
            number += leaves[0].nbytes if isinstance(leaves[0], Tensor) else 0
            return leaves[0]

        _combine(count, [cache])
        return number

    def _token_axis(self, path: Path) -> int | None:
        axes = self.tensors.get(path)
        return axes.tokens if axes else None


def _axes(one: Tensor, two: Tensor, longer: Tensor) -> Axes | None:
    """Of the cache of one sequence, of two, and of one that is a token longer; None: it belongs to no sequence."""
    if not one.dim() == two.dim() == longer.dim():
        raise UnsupportedCache("the number of its dimensions changes")
    batch = [axis for axis in range(one.dim()) if one.shape[axis] != two.shape[axis]]
    tokens = [axis for axis in range(one.dim()) if one.shape[axis] != longer.shape[axis]]
    if not batch and not tokens:
        return None
    if len(batch) != 1 or (one.shape[batch[0]], two.shape[batch[0]]) != (1, 2) or len(tokens) > 1:
        raise UnsupportedCache(f"a tensor of {list(one.shape)} becomes {list(two.shape)} for two sequences")
    return Axes(batch[0], tokens[0] if tokens else None)


def _number(leaf: Any) -> float:
    if isinstance(leaf, Tensor):
        return leaf.item() if leaf.numel() == 1 else torch.nan
    return leaf  # type: ignore[no-any-return]


def _stack(leaves: list[Tensor], axes: Axes) -> Tensor:
    if axes.tokens is not None:
        longest = max(leaf.shape[axes.tokens] for leaf in leaves)
        leaves = [_pad(leaf, axes.tokens, longest - leaf.shape[axes.tokens]) for leaf in leaves]
    return torch.cat(leaves, dim=axes.batch)


def _pad(leaf: Tensor, axis: int, number: int) -> Tensor:
    return pad(leaf, [*[0, 0] * (leaf.dim() - 1 - axis), number, 0]) if number else leaf


def _combine(combine: Combine, nodes: list[Any], path: Path = ()) -> Any:
    """A structure like the first of `nodes`, which are all alike, with `combine` of each tensor and number in them."""
    first = nodes[0]
    match first:
        case None | bool() | str() | bytes():
            return first
        case Tensor() | int() | float():
            return combine(path, nodes)
        case dict():
            return {key: _combine(combine, [node[key] for node in nodes], (*path, key)) for key in first}
        case list() | tuple():
            return type(first)(
                _combine(combine, list(each), (*path, index)) for index, each in enumerate(zip(*nodes, strict=True))
            )
    if isinstance(first, OPAQUE) or not hasattr(first, "__dict__"):
        return first
    copied = copy.copy(first)
    for name in vars(copied):
        vars(copied)[name] = _combine(combine, [vars(node)[name] for node in nodes], (*path, name))
    return copied
