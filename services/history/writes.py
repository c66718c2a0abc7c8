"""The writes of a turn (start, admission, end), committed for many turns in one transaction."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from database.models import QUEUED
from database.models import Turn as TurnRow
from database.repositories import Repositories
from database.turn_repository import Admission, LockedTurn, TurnResult
from database.usage_repository import Usage
from services.errors import ServiceError, Stopped
from services.history.store import Store
from services.history.turn_result import has_newer_items, output_rows, replace_output
from services.history.turn_start import TurnStart, start_turns
from services.history.usage import settled

STOPPED = "The answer was stopped"


@dataclass(frozen=True, slots=True, eq=False)
class TurnEnd:
    row: TurnRow  # as it began
    result: TurnResult
    usage: Usage | None = None


Write = TurnStart | Admission | TurnEnd


async def commit(store: Store, writer: str, writes: Sequence[Write]) -> Mapping[Write, ServiceError]:
    """Returns a map from each rejected write to its error; the others are durable on return."""
    starts = [each for each in writes if isinstance(each, TurnStart)]
    admissions = [each for each in writes if isinstance(each, Admission)]
    ends = [each for each in writes if isinstance(each, TurnEnd)]
    async with store.writing() as repositories:
        conversations = await _lock_conversations(repositories, starts, ends)
        rejected: dict[Write, ServiceError] = dict((await start_turns(repositories, starts, conversations)).items())
        turn_ids = [*(each.turn_id for each in admissions), *(each.row.id for each in ends)]
        locked = await repositories.turns.lock_unfinished(turn_ids, writer) if turn_ids else {}
        rejected.update((await _admit(repositories, admissions, locked)).items())
        await _end(repositories, ends, locked)
        await repositories.usage.add(await _usage(repositories, ends, locked))
    return rejected


async def _lock_conversations(
    repositories: Repositories, starts: Sequence[TurnStart], ends: Sequence[TurnEnd]
) -> set[str]:
    """Locks all conversations at once and before any turn, so that two transactions cannot deadlock."""
    ended = {each.row.conversation_id for each in ends}
    continued = {each.conversation_id for each in starts if not each.is_new_conversation}
    locked = await repositories.conversations.lock(ended | continued) if continued else set[str]()
    await repositories.conversations.touch(ended, time.time())  # locks them: the items of an answer stay adjacent
    return locked


async def _admit(
    repositories: Repositories, admissions: Sequence[Admission], locked: Mapping[str, LockedTurn]
) -> Mapping[Admission, ServiceError]:
    queued = {turn_id for turn_id, turn in locked.items() if turn.status == QUEUED}
    await repositories.turns.admit([each for each in admissions if each.turn_id in queued], time.time())
    return {each: Stopped(STOPPED) for each in admissions if each.turn_id not in queued}


async def _end(repositories: Repositories, ends: Sequence[TurnEnd], locked: Mapping[str, LockedTurn]) -> None:
    """Turns that were deleted meanwhile, or have their result already, stay as they are."""
    ours = {each.row.id: each for each in ends if each.row.id in locked}  # a retried end may be in the batch twice
    forced = [each for turn_id, each in ours.items() if locked[turn_id].completed_at is not None]  # by other processes
    new = [each for each in ours.values() if each not in forced]
    late = [each for each in forced if not await has_newer_items(repositories, each.row)]
    await repositories.turns.finish({each.row.id: each.result for each in [*new, *late]})
    await repositories.items.add([row for each in new for row in output_rows(each.row, each.result.output)])
    for each in late:
        await replace_output(repositories, each.row, each.result.output)


async def _usage(repositories: Repositories, ends: Sequence[TurnEnd], locked: Mapping[str, LockedTurn]) -> list[Usage]:
    """Each turn's once: one that is neither locked nor deleted has been written before."""
    used = {each.row.id: each.usage for each in ends if each.usage}  # a retried end may be in the batch twice
    missing = used.keys() - locked.keys()
    written = await repositories.turns.status(missing) if missing else {}
    return [settled(usage, locked.get(turn_id)) for turn_id, usage in used.items() if turn_id not in written]
