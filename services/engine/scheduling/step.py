"""One step of a model as a plain value that can be pickled: everything that an executor receives.

A step refers to no live sequence, so it follows from its own values and the steps before it: an executor in another
process computes the same from a copy.
"""

from dataclasses import dataclass
from typing import NamedTuple

from services.engine.base import PlacedImage

# position ids from here on: of a sequence that is too long for the short factors of LongRoPE, counted from here
LONG_POSITIONS = 2**30
MAX_DISTANCE = 8  # chunks between snapshots of a long prompt


@dataclass(frozen=True, slots=True)
class CopySlot:
    """The first `length` positions of one slot to another."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True)
class SwapSlots:
    """The first `length` positions of two slots change places."""

    one: int
    other: int
    length: int


@dataclass(frozen=True, slots=True)
class ClearSlot:
    """Positions that become zeros again, and cost no memory where that can be had."""

    slot: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SaveSnapshot:
    """A copy of a slot's cache when it holds `length` tokens, under an `id`; of keys and values those behind the
    tokens of the snapshot `parent`. Where there is one of that id, it lacks states."""

    id: int
    length: int
    parent: int | None


@dataclass(frozen=True, slots=True)
class RestoreSnapshot:
    """A copy of it becomes a slot's cache."""

    id: int
    slot: int


@dataclass(frozen=True, slots=True)
class DropSnapshot:
    """If there is one; `keeps_tokens`: only its states, because others are continued from its keys and values."""

    id: int
    keeps_tokens: bool = False


@dataclass(frozen=True, slots=True)
class SnapshotRoom:
    """What snapshots of a model take, and what they may take together."""

    chunk: int  # tokens, between which snapshots can be taken
    token_bytes: int  # of keys and values
    state_bytes: int
    budget: int  # bytes

    @property
    def distance(self) -> int:
        """Chunks between snapshots, so that states take about as much as the keys and values between them."""
        of_a_chunk = self.chunk * self.token_bytes
        return min(MAX_DISTANCE, max(1, self.state_bytes // of_a_chunk)) if of_a_chunk else MAX_DISTANCE


CacheChange = CopySlot | SwapSlots | ClearSlot | RestoreSnapshot | DropSnapshot


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Only sequences with equal keys share what was computed for one of them."""

    owner: str | None  # None: all owners share
    salt: str = ""
    is_long: bool = False  # computed with the long factors of LongRoPE
    adapter: int | None = None  # and with this one; ids are never given twice


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ImagePrompt:
    """A prompt with images. The same object in all steps of its sequence, so that an executor may keep what it
    computes from it."""

    token_ids: tuple[int, ...]
    images: tuple[PlacedImage, ...]
    cache_key: CacheKey


class StepRow(NamedTuple):
    """Consecutive tokens of one sequence. A named tuple, because one is made for each sequence in each step."""

    request_id: str
    slot: int
    start: int  # position of the first token
    num_tokens: int
    num_logits: int  # of the last so many tokens the logits are wanted
    token_ids: tuple[int, ...]  # with the draft tokens; empty where only the device knows them
    images: ImagePrompt | None = None
    is_long: bool = False  # of a sequence that is rotated by the long factors of LongRoPE
    adapter: int | None = None  # LoRA; None: the model as it is
    saves: tuple[SaveSnapshot, ...] = ()  # on the way, in the order of their lengths

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def position_ids(self) -> range:
        """As the model is given them."""
        offset = LONG_POSITIONS if self.is_long else 0
        return range(offset + self.start, offset + self.end)


@dataclass(frozen=True, slots=True)
class Step:
    """First the changes to the cache, in their order, then all rows at once."""

    changes: list[CacheChange]
    rows: list[StepRow]
