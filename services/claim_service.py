"""Background answers that have no writer: taken by the process that has room, and gone on with there.

They wait because the process that was asked had no room while others are there, or because their writer is gone.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from services.callers import Caller, acting_as
from services.errors import ServiceError, Unavailable
from services.stream_service import StreamService
from services.turn_service import Claimed, TurnService

logger = logging.getLogger(__name__)

POLL_S = 0.5
AT_ONCE = 8  # claimed before those that were claimed are admitted
PATIENCE_S = 2.0  # after which a process without room claims, too: its engine's queue is fair


CallerOf = Callable[[str, str | None], Caller]


def plain_caller(owner: str, key_id: str | None) -> Caller:
    return Caller(owner, key_id or "")


class ClaimService:
    """`is_open`: whether this process takes new work; `is_busy`: whether its engines have requests waiting; `caller_of`
    has the key that asked, by the owner and the key's id."""

    def __init__(
        self,
        turns: TurnService,
        streams: StreamService,
        go_on: Callable[[Claimed], Awaitable[None]],
        is_open: Callable[[], bool],
        is_busy: Callable[[], bool],
        caller_of: CallerOf = plain_caller,
    ) -> None:
        self._turns = turns
        self._streams = streams
        self._go_on = go_on
        self._is_open = is_open
        self._is_busy = is_busy
        self._caller_of = caller_of
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="claims")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def leave(self) -> None:
        """Hands unfinished background answers to the other processes, where there are some."""
        if not self._turns.has_others or not (unfinished := self._streams.claimable()):
            return
        try:
            await self._streams.flush()
            await self._turns.release(unfinished)
            await self._streams.flush()  # notices that they are lost
        except Unavailable as error:
            logger.warning("%s; %d answers end here", error.message, len(unfinished))

    async def _run(self) -> None:
        while True:
            if not await self._try_claim():
                await asyncio.sleep(POLL_S)

    async def _try_claim(self) -> bool:
        try:
            return await self.claim()
        except Unavailable:  # the checkpoints log an outage
            return False
        except Exception:
            logger.exception("Claiming failed; retrying")
            return False

    async def claim(self) -> bool:
        """Takes some of the turns that wait; whether there were any."""
        room = AT_ONCE - self._turns.num_queued
        if room < 1 or not self._is_open():
            return False
        older_than = PATIENCE_S if self._is_busy() else 0.0
        claimed = await self._turns.claim(room, older_than)
        for each in claimed:
            await self._begin(each)
        return bool(claimed)

    async def _begin(self, claimed: Claimed) -> None:
        try:
            with acting_as(self._caller_of(claimed.owner, claimed.key_id)):
                await self._go_on(claimed)
        except Exception as error:  # of one request: the others go on
            refusal = error if isinstance(error, ServiceError) else None
            if refusal is None:
                logger.exception("Answer %s cannot be gone on with", claimed.turn.id)
            await claimed.turn.finish(refusal)
