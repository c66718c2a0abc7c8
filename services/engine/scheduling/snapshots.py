"""The prefix cache of models with states: which snapshots there are, and where more are worth their room. No tensors.

A state is of all its tokens and cannot be cut back, so that copies are kept of some places. These models read prompts
in chunks of one size, whatever the company: at the end of a chunk, while a prompt is read, a cache has the same bits
each time. What was sampled was computed a token at a time, beside others, and is read again.

Keys and values are kept once for all snapshots that continue each other; states, for each. The least recently used
states give way first, and keys and values with the last snapshot that needs them.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

from services.engine.scheduling.sequence import Sequence
from services.engine.scheduling.snapshot_tree import Node, SnapshotTree
from services.engine.scheduling.step import CacheChange, DropSnapshot, RestoreSnapshot, SaveSnapshot, SnapshotRoom


@dataclass(frozen=True, slots=True)
class SnapshotPrefix:
    """A prefix of a prompt of which there is a snapshot, or will be."""

    length: int  # computed
    later: int  # once `holder` has read its prompt
    holder: Sequence | None = None
    is_free = False  # a slot gets a copy


class Snapshots:
    def __init__(self, room: SnapshotRoom) -> None:
        self._room = room
        self._tree = SnapshotTree(room.chunk)
        self._paths: dict[Sequence, list[Node]] = {}  # of running sequences
        self._pending: dict[Sequence, list[Node]] = {}  # that they are going to save
        self._states: OrderedDict[Node, None] = OrderedDict()  # that are saved, the least recently used first
        self._ids = count()
        self._changes: list[CacheChange] = []
        self.num_bytes = 0

    @property
    def num_saved(self) -> int:
        return len(self._states)

    def changes(self) -> list[CacheChange]:
        """Since they were last returned."""
        changes, self._changes = self._changes, []
        return changes

    def find_prefixes(self, sequence: Sequence) -> Iterator[SnapshotPrefix]:
        """Never of its last token, whose logits are needed."""
        path = [node for node in self._tree.known(sequence) if node.length < len(sequence.tokens)]
        saved = _last_saved(path)
        length = saved.length if saved else 0
        coming = next((node for node in reversed(path) if _is_coming(node, sequence)), None)
        if coming and coming.length > length:
            yield SnapshotPrefix(length, coming.length, coming.saver)
        elif length:
            yield SnapshotPrefix(length, length)

    def begin(self, sequence: Sequence, slot: int) -> int:
        """Restores the longest prefix and plans what is saved. Returns its length."""
        if sequence.is_scored:
            return 0
        known = len(self._tree.known(sequence))
        path = self._paths[sequence] = self._tree.extend(sequence)
        for node in path:
            node.num_users += 1
        saved = _last_saved([node for node in path if node.length < len(sequence.tokens)])
        self._plan(sequence, path, saved, known)
        self._remove_surplus()
        if saved is None or saved.id is None:
            return 0
        self._states.move_to_end(saved)
        self._changes.append(RestoreSnapshot(saved.id, slot))
        return saved.length

    def _plan(self, sequence: Sequence, path: list[Node], saved: Node | None, known: int) -> None:
        """Where it ends, where it parted from an earlier one, and at a distance between them."""
        first = saved.length // self._room.chunk if saved else 0
        wanted = {len(path), known, *range(self._room.distance, len(path), self._room.distance)}
        nodes = [path[number - 1] for number in sorted(wanted) if number > first]
        self._pending[sequence] = [node for node in nodes if not node.is_saved and not node.saver]
        for node in self._pending[sequence]:
            node.saver = sequence

    def saves(self, sequence: Sequence, start: int, end: int) -> tuple[SaveSnapshot, ...]:
        """What a step with these tokens saves, with room for it."""
        pending = self._pending.get(sequence)
        if not pending:
            return ()
        reached = [node for node in pending if start < node.length <= end]
        saved = [save for node in reached if (save := self._save(node))]
        for node in reached:
            if not node.is_reserved:
                node.saver = None
        self._pending[sequence] = [node for node in pending if node.saver]
        return tuple(saved)

    def _save(self, node: Node) -> SaveSnapshot | None:
        """None: there is no room."""
        if not node.is_reserved and not self._reserve(node):
            return None
        assert node.id is not None
        return SaveSnapshot(node.id, node.length, node.base.id if node.base else None)

    def _reserve(self, node: Node) -> bool:
        while self.num_bytes + self._cost(node) > self._room.budget:
            if not self._states:
                return False
            self._drop_states(next(iter(self._states)))
        self.num_bytes += self._cost(node)
        if node.id is None:
            node.id, node.base = next(self._ids), node.nearest()
            if node.base:
                node.base.num_continued += 1
        node.is_reserved = True
        return True

    def _cost(self, node: Node) -> int:
        if node.id is not None:
            return self._room.state_bytes
        base = node.nearest()
        return self._room.state_bytes + self._of_tokens(node.length - (base.length if base else 0))

    def _of_tokens(self, number: int) -> int:
        return number * self._room.token_bytes

    def advance(self, sequence: Sequence) -> None:
        """What it was going to save is saved as far as it is computed."""
        if not self._pending.get(sequence):
            return
        pending, self._pending[sequence] = self._pending[sequence], []
        for node in pending:
            if node.is_reserved and node.length <= sequence.num_computed:
                node.is_saved, node.has_tokens, node.saver = True, True, None
                self._states[node] = None
            else:
                self._pending[sequence].append(node)

    def release(self, sequence: Sequence) -> None:
        """The sequence is over, or begins again later."""
        self.advance(sequence)
        for node in reversed(self._pending.pop(sequence, [])):
            node.saver = None
            if node.is_reserved:
                self._drop_states(node)
        for node in self._paths.pop(sequence, []):
            node.num_users -= 1

    def invalidate(self, sequence: Sequence) -> None:
        """The sequence is over, and what it has read may be invalid."""
        path = self._paths.get(sequence, [])
        self.release(sequence)
        self._drop_each(path)

    def clear(self) -> None:
        for sequence in list(self._paths):
            self.release(sequence)
        self.drop_all()

    def drop_all(self) -> bool:
        """Whether there were any."""
        saved = list(self._states)
        self._drop_each(saved)
        return bool(saved)

    def _drop_each(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node.is_saved:
                self._drop_states(node)

    def _drop_states(self, node: Node) -> None:
        self._states.pop(node, None)
        node.is_saved = node.is_reserved = False
        self.num_bytes -= self._room.state_bytes
        assert node.id is not None
        if node.num_continued:
            self._changes.append(DropSnapshot(node.id, keeps_tokens=True))
        else:
            self._drop(node)

    def _drop(self, node: Node) -> None:
        """With those before it that nothing needs any more."""
        last: Node | None = node
        while last and last.id is not None and not last.num_continued and not last.is_reserved:
            self._changes.append(DropSnapshot(last.id))
            self.num_bytes -= self._of_tokens(last.length - last.base_length)
            base, last.id, last.base, last.has_tokens = last.base, None, None, False
            if base:
                base.num_continued -= 1
            last = base

    def _remove_surplus(self) -> None:
        while node := self._tree.surplus():
            self._drop_each([node])
            self._tree.remove(node)


def _last_saved(path: list[Node]) -> Node | None:
    return next((node for node in reversed(path) if node.is_saved), None)


def _is_coming(node: Node, sequence: Sequence) -> bool:
    """No sequence waits for another owner's."""
    return node.saver is not None and node.saver.cache_key == sequence.cache_key
