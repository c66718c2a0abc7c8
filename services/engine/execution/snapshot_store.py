"""Snapshots of a model's own cache: copies that its sequences begin with instead of reading their tokens."""

from dataclasses import dataclass
from typing import Any

from services.engine.execution.cache_layout import CacheLayout, SequenceState, TokenPaths
from services.engine.scheduling.step import DropSnapshot, SaveSnapshot


@dataclass(slots=True)
class Snapshot:
    """Keys and values, and the tokens themselves, are those behind the snapshot that it continues."""

    cache: Any
    token_paths: TokenPaths
    tokens: list[int]
    length: int
    parent: "Snapshot | None"


@dataclass(frozen=True, slots=True)
class Restored:
    state: SequenceState
    tokens: list[int]


class SnapshotStore:
    def __init__(self, layout: CacheLayout) -> None:
        self._layout = layout
        self._snapshots: dict[int, Snapshot] = {}

    @property
    def num_held(self) -> int:
        return len(self._snapshots)

    @property
    def num_bytes(self) -> int:
        """Of their tensors."""
        return sum(self._layout.num_bytes(each.cache) for each in self._snapshots.values())

    def save(self, save: SaveSnapshot, state: SequenceState, tokens: list[int]) -> None:
        """`tokens`: of the sequence, at least those of its state."""
        parent = None if save.parent is None else self._snapshots[save.parent]
        start = parent.length if parent else 0
        cache, paths = self._layout.tail(state, start)
        if known := self._snapshots.get(save.id):  # others may continue it
            known.cache, known.token_paths = cache, paths
        else:
            self._snapshots[save.id] = Snapshot(cache, paths, tokens[start : save.length], save.length, parent)

    def restore(self, id: int) -> Restored:
        snapshot: Snapshot | None = self._snapshots[id]
        chain: list[Snapshot] = []
        while snapshot:
            chain.insert(0, snapshot)
            snapshot = snapshot.parent
        cache = self._layout.concatenate([each.cache for each in chain], chain[-1].token_paths)
        tokens = [token for each in chain for token in each.tokens]
        return Restored(SequenceState(cache, chain[-1].length), tokens)

    def drop(self, change: DropSnapshot) -> None:
        if not change.keeps_tokens:
            self._snapshots.pop(change.id, None)
        elif known := self._snapshots.get(change.id):
            known.cache = self._layout.without_states(known.cache, known.token_paths)
