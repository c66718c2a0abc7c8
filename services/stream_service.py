"""Streams that go on without a reader, and that every process which shares the database can follow and stop.

What is said is in memory at once, and in the database half a second later. A stream's number is its turn's.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator

import orjson

from database.models import CANCELLED, IN_PROGRESS, QUEUED
from database.session import Database
from schemas.response_answer_schema import StreamEvent
from services.errors import Stopped, Unavailable
from services.history.background_stream import BackgroundStream
from services.history.store import Store

logger = logging.getLogger(__name__)

BEAT_S = 0.5  # between writes of what is new, and between looks at what others write
RUNNING = (QUEUED, IN_PROGRESS)
STOPPED = "The answer was stopped"


class StreamService:
    def __init__(self, database: Database) -> None:
        self._store = Store(database)
        self._live: dict[str, BackgroundStream] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._beating = asyncio.Lock()
        self._is_told = False  # that the database is away

    @property
    def num_live(self) -> int:
        return sum(not live.over for live in self._live.values())

    def keep(self, turn_id: str, live: BackgroundStream) -> None:
        self._live[turn_id] = live
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep(), name="stream keeper")

    def is_here(self, turn_id: str, owner: str) -> bool:
        live = self._live.get(turn_id)
        return live is not None and live.owner == owner

    async def follow(self, turn_id: str, after: int) -> AsyncGenerator[list[StreamEvent], None]:
        """What comes after that number, as it comes; ends with the stream, or where nobody writes it any more."""
        last = False
        while not last:
            live = self._live.get(turn_id)
            found = await live.more(after) if live else None
            if found is None:
                found = await self._written(turn_id, after)
            if not found:
                return
            yield found
            after, last = found[-1].number, found[-1].last

    async def _written(self, turn_id: str, after: int) -> list[StreamEvent]:
        """By another process. The end of an answer is known a moment before its last events are written."""
        quiet = 0
        while quiet < 3:
            quiet = 0 if await self._is_running(turn_id) else quiet + 1
            if found := await self._read(turn_id, after):
                return found
            await asyncio.sleep(BEAT_S)
        return []

    async def _is_running(self, turn_id: str) -> bool:
        async with self._store.reading() as repositories:
            return (await repositories.turns.status([turn_id])).get(turn_id) in RUNNING

    async def last(self, turn_id: str) -> StreamEvent | None:
        """The newest event that there is."""
        if (live := self._live.get(turn_id)) is not None:
            return live.last
        async with self._store.reading() as repositories:
            batch = await repositories.streams.last(turn_id)
        return _unpacked(batch)[-1] if batch else None

    async def _read(self, turn_id: str, after: int) -> list[StreamEvent]:
        async with self._store.reading() as repositories:
            batches = await repositories.streams.after(turn_id, after)
        # in a write that was not known to have succeeded, and was done again, are events that are there twice
        events = {event.number: event for batch in batches for event in _unpacked(batch)}
        return [event for number, event in events.items() if number > after]

    async def stop(self, turn_id: str) -> None:
        """Where it is written here; other processes see it by its turn."""
        if (live := self._live.get(turn_id)) is not None:
            await live.stop(Stopped(STOPPED))

    async def close(self) -> None:
        for live in list(self._live.values()):
            await live.stop(Unavailable("The server is shutting down"))
        if self._keeper is not None:
            async with self._beating:  # what it is writing is written to its end
                self._keeper.cancel()
            await asyncio.wait([self._keeper])
            self._keeper = None
        await self._attempt()

    async def _keep(self) -> None:
        while self._live:
            await asyncio.sleep(BEAT_S)
            await self._attempt()

    async def _attempt(self) -> None:
        try:
            await self.beat()
            self._is_told = False
        except Unavailable as error:
            if not self._is_told:  # once, not at every beat
                logger.warning("%s: %s", error.message, error.__cause__)
            self._is_told = True
        except Exception:
            logger.exception("Keeping the streams failed, trying again")

    async def beat(self) -> None:
        """What is new goes to the database, in one transaction; what was stopped elsewhere stops here."""
        async with self._beating:
            await self._beat(dict(self._live))

    async def _beat(self, live: dict[str, BackgroundStream]) -> None:
        if not live:
            return
        unsaved = {turn_id: each.unsaved() for turn_id, each in live.items()}
        ended = {turn_id for turn_id, each in live.items() if each.over}
        async with self._store.writing() as repositories:
            status = await repositories.turns.keep(list(live))
            for turn_id in sorted(live.keys() & status.keys()):
                if turn_id in ended and live[turn_id].passing:
                    await repositories.streams.drop(turn_id)
                elif unsaved[turn_id]:
                    await repositories.streams.add(turn_id, unsaved[turn_id][-1].number, _packed(unsaved[turn_id]))
        for turn_id, each in live.items():
            if unsaved[turn_id]:
                each.saved(unsaved[turn_id])
            if turn_id in ended:
                del self._live[turn_id]
            elif status.get(turn_id, CANCELLED) == CANCELLED:  # or deleted
                await each.stop(Stopped(STOPPED))


def _packed(events: list[StreamEvent]) -> str:
    return orjson.dumps([event.model_dump(exclude_defaults=True) for event in events]).decode()


def _unpacked(batch: str) -> list[StreamEvent]:
    return [StreamEvent.model_validate(event) for event in orjson.loads(batch)]
