"""A turn that is remembered.

It costs a share in two short transactions: begin() writes what was given and an empty answer, finish() the answer's
end. Between them the answer is in memory; a checkpoint every few seconds saves what was said and shows that we live.
"""

import asyncio
import time
from collections.abc import Sequence
from uuid import uuid4

from database.models import COMPLETED, FAILED, IN_PROGRESS, INCOMPLETE, QUEUED
from database.models import Turn as Row
from database.turn_repository import Admission, Outcome
from schemas.chat_schema import ChatMessage
from services.chat.answer.response_events import code_of
from services.chat.events import Event, Head
from services.chat.items import Item
from services.errors import EngineFailed, GrammarStuck, ServiceError, Stopped
from services.history.beginning import Beginning
from services.history.group import Group
from services.history.heard import Heard
from services.history.outcome import End, choice, usage
from services.history.past import Past
from services.history.turn import PREFIX, Opening, history_of
from services.history.writes import STOPPED, Ending, Write


class StoredTurn:
    """Is in `running` from begin() until its end is durable."""

    def __init__(
        self,
        writes: Group[Write],
        running: "dict[str, StoredTurn]",
        writer: str,
        opening: Opening,
        past: Past | None,
    ) -> None:
        self._writes = writes
        self._running = running
        self._writer = writer
        self._opening = opening
        self._past = past or Past("")
        is_new = past is None or past.copied
        self._thread_id = f"conv_{uuid4().hex}" if is_new else self._past.conversation_id
        self.reply_id = uuid4().hex
        self._heard = Heard(self.reply_id, logprobs=opening.logprobs)
        self.id = PREFIX[opening.kind] + self.reply_id
        self.created_at = time.time()
        self.completed_at: float | None = None  # once that is durable
        self.conversation_id = self._thread_id if opening.create or opening.conversation else None
        self.history: Sequence[ChatMessage] = history_of(self._past)
        self.has_begun = False
        self.outcome: Outcome | None = None
        self.stopped = asyncio.Event()  # somebody else has cancelled or deleted it

    async def queue(self, model: str) -> None:
        await self._begin(QUEUED, model, None)

    async def begin(self, head: Head) -> None:
        if self.has_begun:
            await self._writes.add(Admission(self.id, head.model, head.fingerprint, self._opening.request))
        else:
            await self._begin(IN_PROGRESS, head.model, head.fingerprint)

    async def _begin(self, status: str, model: str, fingerprint: str | None) -> None:
        self._running[self.id] = self  # before the commit: settle() spares what it finds here
        self._row = self._new_row(status, model, fingerprint)
        opening = self._opening
        beginning = Beginning(
            row=self._row,
            past=self._past,
            given=opening.input,
            listed=self.conversation_id is not None,
            repeat=opening.repeat,
        )
        try:
            await self._writes.add(beginning)
        except asyncio.CancelledError:  # it may be on its way to the disk
            self._end(self._outcome(None, INCOMPLETE))
            raise
        except BaseException:
            del self._running[self.id]
            raise
        self.has_begun = True

    def _new_row(self, status: str, model: str, fingerprint: str | None) -> Row:
        opening = self._opening
        return Row(
            id=self.id,
            kind=opening.kind,
            owner=opening.owner,
            conversation_id=self._thread_id,
            previous_id=opening.previous,
            status=status,
            stored=opening.stored,
            background=opening.background,
            model=model,
            fingerprint=fingerprint,
            request=dict(opening.request),
            metadata_=dict(opening.metadata),
            writer=self._writer,
            created_at=self.created_at,
            updated_at=self.created_at,
        )

    def add(self, event: Event) -> None:
        if self.stopped.is_set():
            raise Stopped(STOPPED)
        self._heard.add(event)

    @property
    def said(self) -> list[list[Item]]:
        """So far, by choice."""
        return self._heard.said

    async def finish(self, error: ServiceError | None = None, *, status: End | None = None) -> None:
        if self.id in self._running:
            # not to be cancelled: it is written whether anybody waits for it or not
            await asyncio.shield(self._end(self.outcome or self._outcome(error, status)))

    def _end(self, outcome: Outcome) -> "asyncio.Future[None]":
        self.outcome = outcome
        written = self._writes.add(Ending(self._row, outcome))
        written.add_done_callback(self._leave)
        return written

    def _leave(self, written: "asyncio.Future[None]") -> None:
        if self.outcome is not None and written.exception() is None:
            self.completed_at = self.outcome.at
            self._running.pop(self.id, None)

    def _outcome(self, error: ServiceError | None, status: End | None) -> Outcome:
        reply, said = self._heard.reply, self._heard.end()
        is_whole = all(each.finish for each in reply.choices)
        if is_whole and status is None:
            error = None  # the reader left, or was lost, after the end
        return Outcome(
            status=status or (COMPLETED if is_whole else self._broken(error)),
            said=said,
            choices=[choice(reply, index) for index in range(len(said))],
            usage=usage(reply) if is_whole else None,
            at=time.time(),
            error={"code": code_of(error), "message": error.message} if error else None,
        )

    def _broken(self, error: ServiceError | None) -> str:
        """What was never admitted has failed; what was cut short is there in part."""
        was_admitted = self._heard.reply.head is not None
        return INCOMPLETE if was_admitted and not isinstance(error, EngineFailed | GrammarStuck) else FAILED
