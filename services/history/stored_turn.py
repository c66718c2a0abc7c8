"""A turn that is remembered.

It costs a share in two short transactions: begin() writes what was given and an empty answer, finish() the answer's
end. Between them the answer is in memory; a checkpoint every few seconds saves what was said and shows that we live.
"""

import asyncio
import time
from collections.abc import Sequence
from uuid import uuid4

from database.models import COMPLETED, FAILED, IN_PROGRESS, INCOMPLETE, QUEUED
from database.models import Turn as TurnRow
from database.turn_repository import Admission, TurnResult
from schemas.chat_schema import ChatMessage
from services.chat.answer.response_events import code_of
from services.chat.events import Event, Head
from services.chat.items import Item
from services.errors import EngineFailed, GrammarStuck, ServiceError, Stopped
from services.history.context import ConversationContext
from services.history.reply_buffer import ReplyBuffer
from services.history.turn import PREFIX, TurnRequest, history_of
from services.history.turn_result import End, choice, usage
from services.history.turn_start import TurnStart
from services.history.write_batcher import WriteBatcher
from services.history.writes import STOPPED, TurnEnd, Write


class StoredTurn:
    """Is in `running` from begin() until its end is durable."""

    def __init__(
        self,
        writes: WriteBatcher[Write],
        running: "dict[str, StoredTurn]",
        writer: str,
        turn_request: TurnRequest,
        context: ConversationContext | None,
    ) -> None:
        self._writes = writes
        self._running = running
        self._writer = writer
        self._turn_request = turn_request
        self._context = context or ConversationContext("")
        is_new = context is None or context.copied
        self._thread_id = f"conv_{uuid4().hex}" if is_new else self._context.conversation_id
        self.reply_id = uuid4().hex
        self._buffer = ReplyBuffer(self.reply_id, logprobs=turn_request.logprobs)
        self.id = PREFIX[turn_request.kind] + self.reply_id
        self.created_at = time.time()
        self.completed_at: float | None = None  # once that is durable
        self.conversation_id = self._thread_id if turn_request.create or turn_request.conversation else None
        self.history: Sequence[ChatMessage] = history_of(self._context)
        self.has_begun = False
        self.result: TurnResult | None = None
        self.stopped = asyncio.Event()  # somebody else has cancelled or deleted it

    async def queue(self, model: str) -> None:
        await self._begin(QUEUED, model, None)

    async def begin(self, head: Head) -> None:
        if self.has_begun:
            await self._writes.add(Admission(self.id, head.model, head.fingerprint, self._turn_request.request))
        else:
            await self._begin(IN_PROGRESS, head.model, head.fingerprint)

    async def _begin(self, status: str, model: str, fingerprint: str | None) -> None:
        self._running[self.id] = self  # before the commit: settle() spares what it finds here
        self._row = self._new_row(status, model, fingerprint)
        turn_request = self._turn_request
        start = TurnStart(
            row=self._row,
            context=self._context,
            given=turn_request.input,
            listed=self.conversation_id is not None,
            idempotency_key=turn_request.idempotency_key,
        )
        try:
            await self._writes.add(start)
        except asyncio.CancelledError:  # it may be on its way to the disk
            self._end(self._result(None, INCOMPLETE))
            raise
        except BaseException:
            del self._running[self.id]
            raise
        self.has_begun = True

    def _new_row(self, status: str, model: str, fingerprint: str | None) -> TurnRow:
        turn_request = self._turn_request
        return TurnRow(
            id=self.id,
            kind=turn_request.kind,
            owner=turn_request.owner,
            conversation_id=self._thread_id,
            previous_id=turn_request.previous,
            status=status,
            stored=turn_request.stored,
            background=turn_request.background,
            model=model,
            fingerprint=fingerprint,
            request=dict(turn_request.request),
            metadata_=dict(turn_request.metadata),
            writer=self._writer,
            created_at=self.created_at,
            updated_at=self.created_at,
        )

    def add(self, event: Event) -> None:
        if self.stopped.is_set():
            raise Stopped(STOPPED)
        self._buffer.add(event)

    @property
    def said(self) -> list[list[Item]]:
        """So far, by choice."""
        return self._buffer.said

    async def finish(self, error: ServiceError | None = None, *, status: End | None = None) -> None:
        if self.id in self._running:
            # not to be cancelled: it is written whether anybody waits for it or not
            await asyncio.shield(self._end(self.result or self._result(error, status)))

    def _end(self, result: TurnResult) -> "asyncio.Future[None]":
        self.result = result
        written = self._writes.add(TurnEnd(self._row, result))
        written.add_done_callback(self._leave)
        return written

    def _leave(self, written: "asyncio.Future[None]") -> None:
        if self.result is not None and written.exception() is None:
            self.completed_at = self.result.at
            self._running.pop(self.id, None)

    def _result(self, error: ServiceError | None, status: End | None) -> TurnResult:
        reply, said = self._buffer.reply, self._buffer.end()
        is_whole = all(each.finish for each in reply.choices)
        if is_whole and status is None:
            error = None  # the reader left, or was lost, after the end
        return TurnResult(
            status=status or (COMPLETED if is_whole else self._broken(error)),
            said=said,
            choices=[choice(reply, index) for index in range(len(said))],
            usage=usage(reply) if is_whole else None,
            at=time.time(),
            error={"code": code_of(error), "message": error.message} if error else None,
        )

    def _broken(self, error: ServiceError | None) -> str:
        """What was never admitted has failed; what was cut short is there in part."""
        was_admitted = self._buffer.reply.head is not None
        return INCOMPLETE if was_admitted and not isinstance(error, EngineFailed | GrammarStuck) else FAILED
