"""A turn that is stored.

It takes part in two short transactions: begin() writes its input and an empty answer, finish() the result. In between
the output is in memory; a checkpoint every few seconds saves it and shows that this process is alive.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from uuid import uuid4

from database.models import COMPLETED, FAILED, IN_PROGRESS, INCOMPLETE, QUEUED
from database.models import Turn as TurnRow
from database.turn_repository import Admission, TurnResult
from database.usage_repository import Usage
from schemas.chat_schema import ChatMessage
from services import callers
from services.chat.answer.response_events import error_code
from services.chat.events import Event, Head
from services.chat.items import Item
from services.errors import EngineFailed, GrammarStuck, ServiceError, Stopped
from services.history.context import ConversationContext
from services.history.reply_buffer import ReplyBuffer
from services.history.turn import NO_FACTS, PREFIX, Facts, TurnRequest, history_of
from services.history.turn_result import choice_record, usage_record
from services.history.turn_start import TurnStart
from services.history.write_batcher import WriteBatcher
from services.history.writes import STOPPED, TurnEnd, Write


class StoredTurn:
    """Is registered in `running` from begin() until its result is durable."""

    def __init__(
        self,
        writes: WriteBatcher[Write],
        running: "dict[str, StoredTurn]",
        writer: str,
        request: TurnRequest,
        context: ConversationContext | None,
    ) -> None:
        self._writes = writes
        self._running = running
        self._writer = writer
        self._request = request
        self._context = context or ConversationContext("")
        is_new = context is None or context.is_copied
        self._stored_in = f"conv_{uuid4().hex}" if is_new else self._context.conversation_id
        self.reply_id = request.new_reply_id()
        self._buffer = ReplyBuffer(self.reply_id, logprobs=request.logprobs)
        self.id = PREFIX[request.kind] + self.reply_id
        self.created_at = time.time()
        self.completed_at: float | None = None  # set once the result is durable
        self.conversation_id = self._stored_in if request.create or request.conversation else None
        self.history: Sequence[ChatMessage] = history_of(self._context)
        self.has_begun = False
        self._is_queued = False
        self.result: TurnResult | None = None
        self._usage: Usage | None = None
        self.stopped = asyncio.Event()  # set when another request has cancelled or deleted it

    @classmethod
    def claimed(
        cls,
        writes: WriteBatcher[Write],
        running: "dict[str, StoredTurn]",
        request: TurnRequest,
        row: TurnRow,
        context: ConversationContext,
    ) -> "StoredTurn":
        """A queued turn that this process goes on with."""
        assert row.writer
        turn = cls(writes, running, row.writer, request, context)
        turn.id, turn.reply_id, turn.created_at = row.id, row.id[-32:], row.created_at
        turn._buffer = ReplyBuffer(turn.reply_id, logprobs=request.logprobs)
        turn._row = row
        turn.has_begun = turn._is_queued = True
        running[turn.id] = turn
        return turn

    @property
    def is_queued(self) -> bool:
        """It has begun, and no engine has admitted it."""
        return self._is_queued and self.result is None

    async def queue(
        self, model: str, facts: Facts = NO_FACTS, body: Facts | None = None, *, claimed: bool = True
    ) -> None:
        if self.has_begun:
            return
        self._is_queued = True
        row = self._new_row(QUEUED, model, None, facts)
        row.body = dict(body) if body is not None else None
        row.writer = self._writer if claimed else None
        await self._begin(row)
        if not claimed:
            self._running.pop(self.id, None)

    async def begin(self, head: Head, facts: Facts = NO_FACTS) -> None:
        self._is_queued = False
        if self.has_begun:
            await self._writes.add(Admission(self.id, head.model, head.fingerprint, facts))
        else:
            await self._begin(self._new_row(IN_PROGRESS, head.model, head.fingerprint, facts))

    async def _begin(self, row: TurnRow) -> None:
        self._running[self.id] = self  # before the commit: settle_abandoned() skips registered turns
        self._row = row
        start = TurnStart(
            row=self._row,
            context=self._context,
            input=self._request.input,
            listed=self.conversation_id is not None,
            idempotency_key=self._request.idempotency_key,
        )
        try:
            await self._writes.add(start)
        except asyncio.CancelledError:  # the commit may already be under way
            self._end(replace(self._make_result(None), status=INCOMPLETE))
            raise
        except BaseException:
            del self._running[self.id]
            raise
        self.has_begun = True

    def _new_row(self, status: str, model: str, fingerprint: str | None, facts: Facts) -> TurnRow:
        request = self._request
        return TurnRow(
            id=self.id,
            kind=request.kind,
            owner=request.owner,
            key_id=callers.current().key or None,
            conversation_id=self._stored_in,
            previous_id=request.previous,
            status=status,
            stored=request.stored,
            background=request.background,
            model=model,
            fingerprint=fingerprint,
            request=dict(facts),
            metadata_=dict(request.metadata),
            writer=self._writer,
            created_at=self.created_at,
            updated_at=self.created_at,
        )

    def add(self, event: Event) -> None:
        if self.stopped.is_set():
            raise Stopped(STOPPED)
        self._buffer.add(event)

    @property
    def output(self) -> list[list[Item]]:
        """Items generated so far, by choice."""
        return self._buffer.output

    async def finish(self, error: ServiceError | None = None, usage: Usage | None = None) -> None:
        if self.id in self._running:
            self._usage = self._usage or usage
            # shielded: the batcher writes it whether or not the caller still waits
            await asyncio.shield(self._end(self.result or self._make_result(error)))

    def _end(self, result: TurnResult) -> "asyncio.Future[None]":
        self.result = result
        written = self._writes.add(TurnEnd(self._row, result, self._usage))
        written.add_done_callback(self._mark_durable)
        return written

    def _mark_durable(self, written: "asyncio.Future[None]") -> None:
        if self.result is not None and written.exception() is None:
            self.completed_at = self.result.at
            self._running.pop(self.id, None)

    def _make_result(self, error: ServiceError | None) -> TurnResult:
        reply, output = self._buffer.reply, self._buffer.finish()
        is_complete = all(each.finish for each in reply.choices)
        if is_complete:
            error = None  # the reader left after the end
        return TurnResult(
            status=COMPLETED if is_complete else self._status_after(error),
            output=output,
            choices=[choice_record(reply, index) for index in range(len(output))],
            usage=usage_record(reply) if is_complete else None,
            at=time.time(),
            error={"code": error_code(error), "message": error.message} if error else None,
        )

    def _status_after(self, error: ServiceError | None) -> str:
        """Failed if it was never admitted or the engine failed; else incomplete."""
        was_admitted = self._buffer.reply.head is not None
        return INCOMPLETE if was_admitted and not isinstance(error, EngineFailed | GrammarStuck) else FAILED
