"""What is written of turns while they go: that they begin, are admitted and end, of many in one transaction."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from database.models import QUEUED
from database.models import Turn as TurnRow
from database.repositories import Repositories
from database.turn_repository import Admission, Held, TurnResult
from services.errors import ServiceError, Stopped
from services.history.store import Store
from services.history.turn_result import has_gone_on, output, say_again
from services.history.turn_start import TurnStart, begin

STOPPED = "The answer was stopped"


@dataclass(frozen=True, slots=True, eq=False)
class TurnEnd:
    row: TurnRow  # as it began
    result: TurnResult


Write = TurnStart | Admission | TurnEnd


async def commit(store: Store, writer: str, writes: Sequence[Write]) -> Mapping[Write, ServiceError]:
    """Gives those that are refused, and why; the others are durable when it returns."""
    starts = [each for each in writes if isinstance(each, TurnStart)]
    admissions = [each for each in writes if isinstance(each, Admission)]
    ends = [each for each in writes if isinstance(each, TurnEnd)]
    async with store.writing() as repositories:
        conversations = await _hold_conversations(repositories, starts, ends)
        refused: dict[Write, ServiceError] = dict((await begin(repositories, starts, conversations)).items())
        turns = [*(each.turn_id for each in admissions), *(each.row.id for each in ends)]
        held = await repositories.turns.hold(turns, writer) if turns else {}
        refused.update((await _admit(repositories, admissions, held)).items())
        await _end(repositories, ends, held)
    return refused


async def _hold_conversations(
    repositories: Repositories, starts: Sequence[TurnStart], ends: Sequence[TurnEnd]
) -> set[str]:
    """All at once, and before any turn: two transactions never wait for each other."""
    ended = {each.row.conversation_id for each in ends}
    going_on = {each.thread for each in starts if not each.is_new}
    held = await repositories.conversations.hold(ended | going_on) if going_on else set[str]()
    await repositories.conversations.touch(ended, time.time())  # holds them: what is said comes in one piece
    return held


async def _admit(
    repositories: Repositories, admissions: Sequence[Admission], held: Mapping[str, Held]
) -> Mapping[Admission, ServiceError]:
    waiting = {turn_id for turn_id, turn in held.items() if turn.status == QUEUED}
    await repositories.turns.admit([each for each in admissions if each.turn_id in waiting], time.time())
    return {each: Stopped(STOPPED) for each in admissions if each.turn_id not in waiting}


async def _end(repositories: Repositories, ends: Sequence[TurnEnd], held: Mapping[str, Held]) -> None:
    """Those that were deleted meanwhile, or have ended already, are left alone."""
    ours = {each.row.id: each for each in ends if each.row.id in held}  # one that was tried again may be there twice
    settled = [each for turn_id, each in ours.items() if held[turn_id].completed_at is not None]  # by others, too early
    new = [each for each in ours.values() if each not in settled]
    late = [each for each in settled if not await has_gone_on(repositories, each.row)]
    await repositories.turns.finish({each.row.id: each.result for each in [*new, *late]})
    await repositories.items.add([row for each in new for row in output(each.row, each.result.said)])
    for each in late:
        await say_again(repositories, each.row, each.result.said)
