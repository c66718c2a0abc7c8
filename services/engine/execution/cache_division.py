"""How the memory of caches is divided between running sequences and snapshots."""

from dataclasses import dataclass

from services.engine.execution.cache_layout import CacheLayout
from services.engine.scheduling.step import SnapshotRoom


@dataclass(frozen=True, slots=True)
class CacheDivision:
    cache_tokens: int | None = None  # of running sequences together; None: as many as there may be
    snapshots: SnapshotRoom | None = None


def divided(budget: int, layout: CacheLayout, num_slots: int, length: int, chunk: int | None) -> CacheDivision:
    """Half of the bytes for snapshots, and what the running sequences can never take; less where that would leave no
    room for a full sequence. `chunk`: the tokens between which snapshots may be taken; None: there are none."""
    states = num_slots * layout.state_bytes
    least, most = (states + number * length * layout.token_bytes for number in (1, num_slots))
    running = min(most, max(least, budget // 2))
    room = chunk and SnapshotRoom(chunk, layout.token_bytes, layout.state_bytes, budget - running)
    if not room or room.budget < room.state_bytes + room.chunk * room.token_bytes:
        return CacheDivision(_tokens(budget, layout, num_slots * length))
    return CacheDivision(_tokens(running - states, layout, num_slots * length), room)


def _tokens(budget: int, layout: CacheLayout, most: int) -> int | None:
    tokens = budget // layout.token_bytes if layout.token_bytes else most
    return tokens if tokens < most else None
