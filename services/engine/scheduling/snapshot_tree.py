"""Which prompts begin alike: a tree of their chunks, with the snapshots at ends of some. No tensors."""

from array import array
from collections import OrderedDict
from dataclasses import dataclass, field, replace

from services.engine.scheduling.sequence import Sequence
from services.engine.scheduling.step import CacheKey

MAX_NODES = 16_384  # chunks that are remembered, of running sequences and others

ChunkKey = tuple[CacheKey, bytes]


@dataclass(slots=True, eq=False)
class Node:
    """The end of a chunk. What begins alike is remembered without a snapshot, too: where prompts part shows there."""

    length: int = 0  # tokens from the beginning
    key: ChunkKey | None = None
    parent: "Node | None" = None
    children: "dict[ChunkKey, Node]" = field(default_factory=dict)
    num_users: int = 0  # sequences that read it
    saver: Sequence | None = None  # that is going to save a snapshot here
    id: int | None = None  # of the snapshot, which is there, or will be after the step
    base: "Node | None" = None  # whose snapshot it continues
    num_continued: int = 0  # snapshots that continue this one
    has_tokens: bool = False  # whether its keys and values are there
    is_reserved: bool = False  # whether there is room for its states
    is_saved: bool = False  # whether they are there

    @property
    def base_length(self) -> int:
        return self.base.length if self.base else 0

    def nearest(self) -> "Node | None":
        """The nearest snapshot before this one that its saver can continue: saved, or by the same sequence."""
        node = self.parent
        while node and not (node.has_tokens or (node.id is not None and node.saver is self.saver)):
            node = node.parent
        return node


class SnapshotTree:
    """Chunks of different owners are different nodes, except those of the server's own text."""

    def __init__(self, chunk: int) -> None:
        self._chunk = chunk
        self._root = Node()
        self._nodes: OrderedDict[Node, None] = OrderedDict()  # the least recently used first, each behind its children

    def known(self, sequence: Sequence) -> list[Node]:
        """Of the sequence's whole chunks, as far as they are known."""
        path, node = [], self._root
        for key in self._keys(sequence):
            following = node.children.get(key)
            if following is None:
                break
            path.append(node := following)
        return path

    def extend(self, sequence: Sequence) -> list[Node]:
        """All of them, known from now on."""
        path, node = [], self._root
        for key in self._keys(sequence):
            if key not in node.children:
                node.children[key] = Node(node.length + self._chunk, key, node)
            path.append(node := node.children[key])
        for node in reversed(path):
            self._nodes[node] = None
            self._nodes.move_to_end(node)
        return path

    def surplus(self) -> Node | None:
        """The least recently used, where there are too many."""
        if len(self._nodes) <= MAX_NODES:
            return None
        return next((node for node in self._nodes if not node.num_users), None)

    def remove(self, node: Node) -> None:
        """One without children."""
        assert node.parent
        assert node.key
        assert not node.children
        del node.parent.children[node.key]
        del self._nodes[node]

    def _keys(self, sequence: Sequence) -> list[ChunkKey]:
        own = sequence.cache_key
        assert own
        public = replace(own, owner=None, salt="")
        tokens = array("i", sequence.keys())
        return [
            (public if end <= sequence.job.num_public else own, tokens[end - self._chunk : end].tobytes())
            for end in range(self._chunk, len(tokens) + 1, self._chunk)
        ]
