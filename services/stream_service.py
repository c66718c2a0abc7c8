"""Background streams, which every process that shares the database can follow and stop.

New events are written several times a second. A stream has the id of its turn.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import orjson

from database.models import CANCELLED, IN_PROGRESS, QUEUED, StreamBatch
from database.session import Database
from schemas.response_answer_schema import StreamEvent
from services.engine.base import Piece
from services.errors import Stopped, Unavailable
from services.history.background_stream import BackgroundStream
from services.history.progress import Progress, packed, unpacked
from services.history.store import Store

logger = logging.getLogger(__name__)

FLUSH_S = 0.1  # interval of writes of new events
POLL_S = 0.25  # interval of reading streams of other processes
STATUS_S = 0.5  # interval of looking up stopped turns where there is nothing to write
RUNNING = (QUEUED, IN_PROGRESS)
STOPPED = "The answer was stopped"


class StreamService:
    def __init__(self, database: Database) -> None:
        self._store = Store(database)
        self._streams: dict[str, BackgroundStream] = {}
        self._flusher: asyncio.Task[None] | None = None
        self._flushing = asyncio.Lock()
        self._is_outage_logged = False

    @property
    def num_running(self) -> int:
        return sum(not stream.is_finished for stream in self._streams.values())

    def claimable(self) -> list[str]:
        """Streams of this process that another one could go on with."""
        unfinished = {id: each.progress for id, each in self._streams.items() if not each.is_finished}
        return [id for id, progress in unfinished.items() if progress and progress.is_claimable]

    def register(self, turn_id: str, stream: BackgroundStream) -> None:
        self._streams[turn_id] = stream
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._run(), name="stream flusher")

    def is_local(self, turn_id: str, owner: str) -> bool:
        stream = self._streams.get(turn_id)
        return stream is not None and stream.owner == owner

    def reader(self, turn_id: str, after: int) -> "StreamReader":
        return StreamReader(partial(self._events_after, turn_id), after)

    async def _events_after(self, turn_id: str, after: int) -> list[StreamEvent]:
        stream = self._streams.get(turn_id)
        found = await stream.events_after(after) if stream else None
        return await self._poll_stored(turn_id, after) if found is None else found

    async def _poll_stored(self, turn_id: str, after: int) -> list[StreamEvent]:
        """Waits for events of another process. A turn finishes a moment before its last events are written."""
        num_quiet = 0
        while num_quiet < 3:
            num_quiet = 0 if await self._is_running(turn_id) else num_quiet + 1
            if found := await self._read(turn_id, after):
                return found
            await asyncio.sleep(POLL_S)
        return []

    async def _is_running(self, turn_id: str) -> bool:
        async with self._store.reading() as repositories:
            return (await repositories.turns.status([turn_id])).get(turn_id) in RUNNING

    async def last_event(self, turn_id: str) -> StreamEvent | None:
        if (stream := self._streams.get(turn_id)) is not None and stream.last_event:
            return stream.last_event
        async with self._store.reading() as repositories:
            batch = await repositories.streams.last(turn_id)
        return _unpacked(batch)[-1] if batch else None

    async def store(self, turn_id: str, events: Sequence[StreamEvent]) -> None:
        """The first events of a stream that any process may go on with."""
        batch = StreamBatch(turn_id=turn_id, number=events[-1].number, events=_packed(events))
        async with self._store.writing() as repositories:
            if await repositories.turns.lock_shared([turn_id]):
                await repositories.streams.add([batch])

    async def progress(self, turn_id: str, attempt: int) -> Progress:
        """What earlier writers have stored of it."""
        async with self._store.reading() as repositories:
            last = await repositories.streams.last(turn_id)
            pieces = await repositories.streams.pieces(turn_id)
        return Progress(attempt, _unpacked(last)[-1].number if last else -1, unpacked(pieces))

    async def _read(self, turn_id: str, after: int) -> list[StreamEvent]:
        async with self._store.reading() as repositories:
            batches = await repositories.streams.after(turn_id, after)
        # a retried write may have stored some events twice
        events = {event.number: event for batch in batches for event in _unpacked(batch)}
        return [event for number, event in events.items() if number > after]

    async def saved(self, turn_id: str) -> None:
        """Waits until what has come of a stream of this process is stored, or cannot be."""
        if (stream := self._streams.get(turn_id)) is not None:
            await stream.saved()

    async def stop(self, turn_id: str) -> None:
        """Stops a stream of this process; other processes notice the status of its turn."""
        if (stream := self._streams.get(turn_id)) is not None:
            await stream.stop(Stopped(STOPPED))

    async def close(self) -> None:
        for stream in list(self._streams.values()):
            await stream.stop(Unavailable("The server is shutting down"))
        if self._flusher is not None:
            async with self._flushing:  # lets a write that is under way finish
                self._flusher.cancel()
            await asyncio.wait([self._flusher])
            self._flusher = None
        await self._try_flush()

    async def _run(self) -> None:
        looked = 0.0
        while self._streams:
            await asyncio.sleep(FLUSH_S)
            now = time.monotonic()
            if now - looked >= STATUS_S or any(each.is_due for each in self._streams.values()):
                looked = now
                await self._try_flush()

    async def _try_flush(self) -> None:
        try:
            await self.flush()
            self._is_outage_logged = False
        except Unavailable as error:
            if not self._is_outage_logged:  # once per outage
                logger.warning("%s: %s", error.message, error.__cause__)
            self._is_outage_logged = True
            for stream in self._streams.values():
                stream.show_unsaved()
        except Exception:
            logger.exception("Flushing background streams failed; retrying")

    async def flush(self) -> None:
        """Writes new events in one transaction, and stops streams whose turn was cancelled or deleted elsewhere."""
        async with self._flushing:
            await self._flush(dict(self._streams))

    async def _flush(self, streams: dict[str, BackgroundStream]) -> None:
        if not streams:
            return
        unsaved = {turn_id: _Unsaved.of(each) for turn_id, each in streams.items()}
        finished = {turn_id for turn_id, each in streams.items() if each.is_finished}
        async with self._store.writing() as repositories:
            turns = await repositories.turns.lock_shared(list(streams))
            lost = {turn_id for turn_id, turn in turns.items() if turn.attempt != streams[turn_id].attempt}
            batches: list[StreamBatch] = []
            for turn_id in sorted(streams.keys() & turns.keys() - lost):
                if turn_id in finished and streams[turn_id].is_transient:
                    await repositories.streams.delete(turn_id)
                elif unsaved[turn_id].events:
                    batches.append(unsaved[turn_id].batch(turn_id))
            await repositories.streams.add(batches)
        for turn_id, each in streams.items():
            if turn_id in lost:
                del self._streams[turn_id]
                await each.lose()
                continue
            unsaved[turn_id].mark_saved(each)
            if turn_id in finished:
                del self._streams[turn_id]
            elif turn_id not in turns or turns[turn_id].status == CANCELLED:  # a missing row: deleted
                await each.stop(Stopped(STOPPED))


@dataclass(frozen=True, slots=True)
class _Unsaved:
    """What of a stream is not in the database, at one moment."""

    events: list[StreamEvent]
    pieces: list[Piece]

    @classmethod
    def of(cls, stream: BackgroundStream) -> "_Unsaved":
        return cls(stream.unsaved_events(), stream.progress.unsaved() if stream.progress else [])

    def batch(self, turn_id: str) -> StreamBatch:
        number, pieces = self.events[-1].number, packed(self.pieces)
        return StreamBatch(turn_id=turn_id, number=number, events=_packed(self.events), pieces=pieces)

    def mark_saved(self, stream: BackgroundStream) -> None:
        if self.events:
            stream.mark_saved(self.events)
            if stream.progress:
                stream.progress.mark_saved(self.pieces)


@dataclass(slots=True)
class StreamReader:
    """Follows one stream, from the event after that number."""

    _events_after: Callable[[int], Awaitable[list[StreamEvent]]]
    _after: int
    has_last: bool = False

    async def read(self) -> list[StreamEvent]:
        """Waits for more events. None at the end of the stream, or when no process writes it any more."""
        found = [] if self.has_last else await self._events_after(self._after)
        if found:
            self._after, self.has_last = found[-1].number, found[-1].last
        return found


def _packed(events: Sequence[StreamEvent]) -> str:
    return orjson.dumps([event.model_dump(exclude_defaults=True) for event in events]).decode()


def _unpacked(batch: str) -> list[StreamEvent]:
    return [StreamEvent.model_validate(event) for event in orjson.loads(batch)]
