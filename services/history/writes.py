"""What is written of turns while they go: that they begin, are admitted and end, of many in one transaction."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from database.models import QUEUED
from database.models import Turn as Row
from database.repositories import Repositories
from database.turn_repository import Admission, Held, Outcome
from services.errors import ServiceError, Stopped
from services.history.beginning import Beginning, begin
from services.history.outcome import has_gone_on, output, say_again
from services.history.store import Store

STOPPED = "The answer was stopped"


@dataclass(frozen=True, slots=True, eq=False)
class Ending:
    row: Row  # as it began
    outcome: Outcome


Write = Beginning | Admission | Ending


async def commit(store: Store, writer: str, writes: Sequence[Write]) -> Mapping[Write, ServiceError]:
    """Gives those that are refused, and why; the others are durable when it returns."""
    beginnings = [each for each in writes if isinstance(each, Beginning)]
    admissions = [each for each in writes if isinstance(each, Admission)]
    endings = [each for each in writes if isinstance(each, Ending)]
    async with store.writing() as repositories:
        conversations = await _hold_conversations(repositories, beginnings, endings)
        refused: dict[Write, ServiceError] = dict((await begin(repositories, beginnings, conversations)).items())
        turns = [*(each.turn_id for each in admissions), *(each.row.id for each in endings)]
        held = await repositories.turns.hold(turns, writer) if turns else {}
        refused.update((await _admit(repositories, admissions, held)).items())
        await _end(repositories, endings, held)
    return refused


async def _hold_conversations(
    repositories: Repositories, beginnings: Sequence[Beginning], endings: Sequence[Ending]
) -> set[str]:
    """All at once, and before any turn: two transactions never wait for each other."""
    ended = {each.row.conversation_id for each in endings}
    going_on = {each.thread for each in beginnings if not each.is_new}
    held = await repositories.conversations.hold(ended | going_on) if going_on else set[str]()
    await repositories.conversations.touch(ended, time.time())  # holds them: what is said comes in one piece
    return held


async def _admit(
    repositories: Repositories, admissions: Sequence[Admission], held: Mapping[str, Held]
) -> Mapping[Admission, ServiceError]:
    waiting = {turn_id for turn_id, turn in held.items() if turn.status == QUEUED}
    await repositories.turns.admit([each for each in admissions if each.turn_id in waiting], time.time())
    return {each: Stopped(STOPPED) for each in admissions if each.turn_id not in waiting}


async def _end(repositories: Repositories, endings: Sequence[Ending], held: Mapping[str, Held]) -> None:
    """Those that were deleted meanwhile, or have ended already, are left alone."""
    ours = {each.row.id: each for each in endings if each.row.id in held}  # one that was tried again may be there twice
    settled = [each for turn_id, each in ours.items() if held[turn_id].completed_at is not None]  # by others, too early
    new = [each for each in ours.values() if each not in settled]
    late = [each for each in settled if not await has_gone_on(repositories, each.row)]
    await repositories.turns.finish({each.row.id: each.outcome for each in [*new, *late]})
    await repositories.items.add([row for each in new for row in output(each.row, each.outcome.said)])
    for each in late:
        await say_again(repositories, each.row, each.outcome.said)
