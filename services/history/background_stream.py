"""A stream that a task of its own writes, for readers that come and go."""

import asyncio
import logging
from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing

from schemas.response_answer_schema import StreamEvent
from services.errors import EngineFailed, ServiceError

logger = logging.getLogger(__name__)

KEPT = 4096  # events of a stream in memory, beyond those that are not yet in the database
INTERRUPTED = "The answer was interrupted"


class BackgroundStream:
    """`ended` says how a stream ends that broke off, given why and the next number."""

    def __init__(
        self,
        source: AsyncGenerator[StreamEvent, None],
        owner: str,
        ended: Callable[[ServiceError, int], Iterable[StreamEvent]],
        *,
        passing: bool = False,
    ) -> None:
        self.owner = owner
        self.passing = passing  # once it is over, others have what it said
        self.over = False
        self._source = source
        self._ended = ended
        self._events: list[StreamEvent] = []
        self._saved = -1  # the number of the last one that is in the database
        self._dropped = -1  # of the last one that is no longer here
        self._error: ServiceError | None = None
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._write(), name="live stream")

    async def started(self) -> StreamEvent:
        """The first event. What refuses the request is raised; who leaves before that takes the request along."""
        try:
            while not self._events and not self.over:
                await self._changed.wait()
        except asyncio.CancelledError:
            self._task.cancel()
            raise
        if not self._events:
            raise self._error or EngineFailed(INTERRUPTED)
        return self._events[0]

    async def more(self, after: int) -> list[StreamEvent] | None:
        """What comes after that, as soon as there is something; nothing at the end; None: it is no longer here."""
        while True:
            changed = self._changed
            if after < self._dropped:
                return None
            found = self._since(after)
            if found or self.over:
                return found
            await changed.wait()

    @property
    def last(self) -> StreamEvent | None:
        return self._events[-1] if self._events else None

    def unsaved(self) -> list[StreamEvent]:
        return self._since(self._saved)

    def saved(self, events: list[StreamEvent]) -> None:
        self._saved = events[-1].number
        surplus = self._events[: max(0, len(self._events) - len(self.unsaved()) - KEPT)]
        if surplus:
            self._dropped = surplus[-1].number
            del self._events[: len(surplus)]

    async def stop(self, why: ServiceError) -> None:
        """Its readers are told why."""
        self._error = self._error or why
        self._task.cancel()
        await asyncio.wait({self._task})

    def _since(self, after: int) -> list[StreamEvent]:
        return self._events[bisect_right(self._events, after, key=lambda event: event.number) :]

    async def _write(self) -> None:
        try:
            async with aclosing(self._source) as source:
                async for event in source:
                    self._add(event)
        except asyncio.CancelledError:
            self._break_off(self._error or EngineFailed(INTERRUPTED))
        except ServiceError as error:
            self._break_off(error)
        except Exception:
            logger.exception("an answer broke off")
            self._break_off(EngineFailed(INTERRUPTED))
        finally:
            self.over = True
            self._wake()

    def _break_off(self, why: ServiceError) -> None:
        """Before its first event it is refused, not ended."""
        self._error = why
        if self._events:
            for event in self._ended(why, self._events[-1].number + 1):
                self._add(event)

    def _add(self, event: StreamEvent) -> None:
        self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
