"""A turn that is remembered.

It costs two short transactions: begin() writes what was given and an empty answer, finish() the answer's end. Between
them the answer is in memory; a checkpoint every few seconds saves what was said and shows that we live.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from uuid import uuid4

from database.models import COMPLETED, FAILED, IN_PROGRESS, INCOMPLETE, QUEUED, Conversation
from database.models import Turn as Row
from database.repositories import Repositories
from database.turn_repository import Outcome
from schemas.chat_schema import ChatMessage
from services.chat.answer.output import Output
from services.chat.answer.output import status as item_status
from services.chat.answer.response_events import code_of
from services.chat.events import Event, Finish, Head, Reply
from services.chat.items import Item
from services.errors import EngineFailed, ServiceError, Stopped
from services.history import rows
from services.history.outcome import End, choice, usage, write_output
from services.history.past import Past
from services.history.repeat import remember
from services.history.rows import Place
from services.history.store import Store, busy, no_conversation
from services.history.turn import PREFIX, Opening, history_of

STOPPED = "The answer was stopped"


class StoredTurn:
    """Is in `running` from begin() until its end is durable."""

    def __init__(
        self, store: Store, running: "dict[str, StoredTurn]", writer: str, opening: Opening, past: Past | None
    ) -> None:
        self._store = store
        self._running = running
        self._writer = writer
        self._opening = opening
        self._is_new = past is None or past.copied
        self._past = past or Past("")
        self._thread_id = f"conv_{uuid4().hex}" if self._is_new else self._past.conversation_id
        self._reply = Reply()
        self._outputs: list[Output] = []
        self.reply_id = uuid4().hex
        self.id = PREFIX[opening.kind] + self.reply_id
        self.created_at = time.time()
        self.completed_at: float | None = None  # once that is durable
        self.conversation_id = self._thread_id if opening.create or opening.conversation else None
        self.input = [rows.whole(item) for item in opening.input]
        self.history: Sequence[ChatMessage] = history_of(self._past)
        self.has_begun = False
        self.outcome: Outcome | None = None
        self.stopped = asyncio.Event()  # somebody else has cancelled or deleted it

    async def queue(self, model: str) -> None:
        await self._write(QUEUED, model, None)

    async def begin(self, head: Head) -> None:
        if not self.has_begun:
            await self._write(IN_PROGRESS, head.model, head.fingerprint)
            return
        async with self._store.writing() as repositories:
            admitted = await repositories.turns.admit(
                self.id,
                model=head.model,
                fingerprint=head.fingerprint,
                request=self._opening.request,
                now=time.time(),
            )
        if not admitted:
            raise Stopped(STOPPED)

    async def _write(self, status: str, model: str, fingerprint: str | None) -> None:
        self._running[self.id] = self  # before the commit: settle() spares what it finds here
        try:
            async with self._store.writing() as repositories:
                parent_id = await self._claim(repositories)
                await self._rename(repositories)
                given = rows.chain(self.input, replace(self._place, parent_id=parent_id))
                row = self._row(status, given[-1].id if given else parent_id)
                row.model, row.fingerprint = model, fingerprint
                await repositories.turns.add(row)
                await repositories.items.add(given)
                await remember(repositories, self._opening.repeat, row.owner, self._thread_id, turn_id=self.id)
        except BaseException:
            del self._running[self.id]
            raise
        self.has_begun = True

    @property
    def _place(self) -> Place:
        return Place(self._opening.owner, self._thread_id, self.created_at, turn_id=self.id)

    async def _claim(self, repositories: Repositories) -> str | None:
        """The item to go on from, with the conversation locked until the transaction ends."""
        if self._is_new:
            return await self._create(repositories)
        if await repositories.conversations.get(self._thread_id, self._opening.owner, lock=True) is None:
            raise no_conversation(self._thread_id)
        if self._past.is_alone:
            await self._refuse_others(repositories)
        tip = self._past.branch[-1].id if self._past.branch else None
        is_checked = tip == self._past.head  # by _refuse_others
        if tip is not None and not is_checked and await repositories.items.get(self._thread_id, tip) is None:
            raise busy()  # it was deleted meanwhile
        await repositories.conversations.touch(self._thread_id, time.time())
        return tip

    async def _rename(self, repositories: Repositories) -> None:
        """What is given once more, or twice, under the id that it has is another item."""
        ids = [item["id"] for item in self._opening.input if "id" in item]
        if ids:
            known = await repositories.items.known(self._thread_id, ids)
            self.input = rows.renamed(self.input, {row.id for row in known})

    async def _create(self, repositories: Repositories) -> str | None:
        now, owner = self.created_at, self._opening.owner
        listed = self.conversation_id is not None
        new = Conversation(id=self._thread_id, owner=owner, listed=listed, created_at=now, updated_at=now)
        await repositories.conversations.add(new)
        copied = rows.copies(self._past.branch, self._thread_id, now)
        await repositories.items.add(copied)
        return copied[-1].id if copied else None

    async def _refuse_others(self, repositories: Repositories) -> None:
        newest = await repositories.items.newest(self._thread_id)
        if (newest.id if newest else None) != self._past.head:
            raise busy()
        if await repositories.turns.running_in(self._thread_id) is not None:
            raise busy()

    def _row(self, status: str, parent_id: str | None) -> Row:
        opening = self._opening
        return Row(
            id=self.id,
            kind=opening.kind,
            owner=opening.owner,
            conversation_id=self._thread_id,
            previous_id=opening.previous,
            parent_id=parent_id,
            status=status,
            stored=opening.stored,
            background=opening.background,
            model="",
            request=dict(opening.request),
            metadata_=dict(opening.metadata),
            writer=self._writer,
            created_at=self.created_at,
            updated_at=self.created_at,
        )

    def add(self, event: Event) -> None:
        if self.stopped.is_set():
            raise Stopped(STOPPED)
        self._reply.add(event)
        match event:
            case Head(n=n):
                # one choice's ids are made of the answer's, those of further ones must not be the same
                names = [self.reply_id, *(f"{self.reply_id}c{index}" for index in range(1, n))]
                self._outputs = [Output(name, logprobs=self._opening.logprobs) for name in names]
            case Finish():
                pass
            case _:
                self._outputs[event.index].add(event)

    @property
    def said(self) -> list[list[Item]]:
        """So far, by choice."""
        return [output.items for output in self._outputs]

    async def finish(self, error: ServiceError | None = None, *, status: End | None = None) -> None:
        if self.id not in self._running:
            return
        self.outcome = self.outcome or self._outcome(error, status)
        async with self._store.writing() as repositories:
            self.completed_at = await self.write_outcome(repositories, self.outcome)
        self._running.pop(self.id, None)

    def _outcome(self, error: ServiceError | None, status: End | None) -> Outcome:
        finishes = [said.finish for said in self._reply.choices]
        is_whole = all(finishes)
        if is_whole and status is None:
            error = None  # the reader left, or was lost, after the end
        said = [output.end(item_status(end)) for output, end in zip(self._outputs, finishes, strict=False)]
        return Outcome(
            status=status or (COMPLETED if is_whole else self._broken(error)),
            said=said,
            choices=[choice(self._reply, index) for index in range(len(self._outputs))],
            usage=usage(self._reply) if is_whole else None,
            error={"code": code_of(error), "message": error.message} if error else None,
        )

    def _broken(self, error: ServiceError | None) -> str:
        """What was never admitted has failed; what was cut short is there in part."""
        was_admitted = self._reply.head is not None
        return INCOMPLETE if was_admitted and not isinstance(error, EngineFailed) else FAILED

    async def write_outcome(self, repositories: Repositories, outcome: Outcome) -> float:
        now = time.time()
        await repositories.conversations.touch(self._thread_id, now)  # locks it: what is said comes in one piece
        turn = await repositories.turns.mine(self.id, self._writer)
        if turn is not None:
            was_settled = turn.completed_at is not None
            await repositories.turns.finish(turn, outcome, now)
            await write_output(repositories, turn, outcome.said, was_settled=was_settled)
        return now
