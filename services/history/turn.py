"""A turn: what was given to a model, and the answer that becomes of it.

It costs two short transactions: begin() writes what was given and an empty answer, finish() the answer's end. Between
them the answer is in memory; a checkpoint every few seconds saves what was said and shows that we live.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol
from uuid import uuid4

from database.models import COMPLETED, FAILED, IN_PROGRESS, INCOMPLETE, QUEUED, Conversation
from database.models import Turn as Row
from database.repositories import Repositories
from database.turn_repository import Outcome
from schemas.chat_schema import ChatMessage
from services.chat import items as chat_items
from services.chat.events import Event, Finish, Head, Reply
from services.chat.items import Item
from services.chat.output import Output, logprob
from services.chat.output import status as item_status
from services.chat.response_events import code_of
from services.errors import EngineFailed, ServiceError, Stopped
from services.history import rows
from services.history.past import Past
from services.history.repeat import Repeat, remember
from services.history.rows import Place
from services.history.store import Store, busy, no_conversation

Kind = Literal["chat.completion", "response", "message"]
PREFIX: dict[Kind, str] = {"chat.completion": "chatcmpl-", "response": "resp_", "message": ""}
STOPPED = "The answer was stopped"
End = Literal["completed", "incomplete", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a turn is opened with, before it is known whether it will be answered."""

    owner: str
    kind: Kind = "chat.completion"
    input: Sequence[Item] = ()
    conversation: str | None = None  # to go on with and to add to
    item: str | None = None  # of that conversation, to go on from instead of the newest
    previous: str | None = None  # the stored answer, of the same kind, to go on from
    create: bool = False  # a conversation, where none is named
    stored: bool = False  # to be found again by its id
    background: bool = False
    logprobs: bool = False  # in the items of its answer
    repeat: Repeat | None = None  # if the request may come again
    request: Mapping[str, Any] = field(default_factory=dict)  # what is shown of it later
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_remembered(self) -> bool:
        return self.create or self.stored or self.conversation is not None


class Turn(Protocol):
    """Who has begun a turn finishes it, whatever happens."""

    @property
    def id(self) -> str:
        """The answer's; known before the turn begins, as all the others are."""

    @property
    def reply_id(self) -> str:
        """Of which the ids of the answer's items are made, as `Output` does."""

    @property
    def created_at(self) -> float: ...

    @property
    def conversation_id(self) -> str | None:
        """None where the answer is in no conversation that its owner could name."""

    completed_at: float | None
    history: Sequence[ChatMessage]
    """The active branch, oldest first. Who makes the whole prompt himself takes it from here."""

    async def queue(self, model: str) -> None:
        """Begins it before it is admitted: from now on it is found, and nobody else adds to its conversation."""

    async def begin(self, head: Head) -> None:
        """Durable when it returns; raises Conflict where somebody else has written since the history was read."""

    def add(self, event: Event) -> None:
        """What is said, for the next checkpoint and the end."""

    async def finish(self, error: ServiceError | None = None, *, status: End | None = None) -> None:
        """The first call counts. To be shielded. After Unavailable the outcome is kept and written later."""


class UnstoredTurn:
    """A turn nobody asked to remember."""

    def __init__(self, kind: Kind = "chat.completion", past: Past | None = None) -> None:
        self.reply_id = uuid4().hex
        self.id = PREFIX[kind] + self.reply_id
        self.created_at = time.time()
        self.completed_at: float | None = None
        self.conversation_id: str | None = None
        self.history: Sequence[ChatMessage] = _history(past) if past else ()

    async def queue(self, model: str) -> None: ...

    async def begin(self, head: Head) -> None: ...

    def add(self, event: Event) -> None: ...

    async def finish(self, error: ServiceError | None = None, *, status: End | None = None) -> None: ...


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
        self.history: Sequence[ChatMessage] = _history(self._past)
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
            if not await repositories.turns.admit(self.id, head.model, head.fingerprint, time.time()):
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
        await repositories.conversations.touch(self._thread_id, time.time())
        return self._past.branch[-1].id if self._past.branch else None

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
        if (newest.seq if newest else None) != self._past.head:
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
            choices=[_choice(self._reply, index) for index in range(len(self._outputs))],
            usage=_usage(self._reply) if is_whole else None,
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


async def give_up(repositories: Repositories, turn: Row, status: End) -> None:
    """Ends it for its writer, with what its last checkpoint saved."""
    said = turn.said or []
    await repositories.turns.give_up(turn, status, time.time())
    await write_output(repositories, turn, [_cut_short(items) for items in said])


def _history(past: Past) -> list[ChatMessage]:
    return chat_items.messages([row.data for row in past.branch])


def _cut_short(items: Sequence[Item]) -> list[Item]:
    return [item | {"status": "incomplete" if item is items[-1] else "completed"} for item in items]


async def write_output(
    repositories: Repositories, turn: Row, said: Sequence[Sequence[Item]], *, was_settled: bool = False
) -> None:
    """What was said becomes items; those that were made of a checkpoint are said again, in full."""
    known = {row.id: row for row in await repositories.items.of_turn(turn.id)} if was_settled else {}
    place = Place(turn.owner, turn.conversation_id, turn.created_at, turn.parent_id, turn.id)
    for choice, items in enumerate(said):
        new = rows.chain(items, replace(place, choice=choice))
        for row in new:
            if row.id in known:
                known[row.id].data, known[row.id].terms = row.data, row.terms
        await repositories.items.add([row for row in new if row.id not in known])


def _choice(reply: Reply, index: int) -> dict[str, Any]:
    said = reply.choices[index]
    told: dict[str, Any] = {"finish_reason": said.finish.reason if said.finish else None}
    return told | ({"logprobs": [logprob(each) for each in said.logprobs]} if said.logprobs else {})


def _usage(reply: Reply) -> dict[str, int]:
    """A prompt of several choices is counted once."""
    finishes = [said.finish for said in reply.choices if said.finish]
    return {
        "prompt_tokens": finishes[0].prompt_tokens,
        "cached_tokens": finishes[0].cached_tokens,
        **({"truncated_tokens": reply.head.truncated} if reply.head and reply.head.truncated is not None else {}),
        "completion_tokens": sum(finish.completion_tokens for finish in finishes),
        "reasoning_tokens": sum(finish.reasoning_tokens for finish in finishes),
    }
