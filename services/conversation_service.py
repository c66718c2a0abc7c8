"""Conversations: what was said before a turn, and what becomes of it, in a database that may be shared or away.

A turn costs two short transactions: begin() writes the user's items and an empty reply, finish() the reply's end.
Between them the reply is in memory; a checkpoint every few seconds saves what was said and shows that we live.
"""

import asyncio
import itertools
import logging
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol
from uuid import uuid4

from sqlalchemy.exc import IntegrityError

from database.conversation_repository import ConversationRepository
from database.models import COMPLETED, IN_PROGRESS, INCOMPLETE, Conversation, Message
from database.session import Database, is_away
from services.errors import Conflict, InvalidRequest, NotFound, Unavailable

logger = logging.getLogger(__name__)

Content = str | list[dict[str, object]] | None
Status = Literal["completed", "incomplete"]

CONVERSATION_ID = re.compile(r"conv_[0-9a-f]{32}")
MESSAGE_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class NewItem:
    role: str
    content: Content


@dataclass(frozen=True, slots=True)
class StoredMessage:
    id: str
    conversation_id: str
    parent_id: str | None
    position: int
    role: str
    content: Content
    status: str
    finish_reason: str | None
    usage: dict[str, object] | None
    model: str | None
    created_at: float


class Turn(Protocol):
    """The user's items and their reply. Who has begun a turn finishes it, whatever happens."""

    @property
    def conversation_id(self) -> str | None: ...

    @property
    def reply_id(self) -> str:
        """Known before the turn begins."""

    @property
    def history(self) -> Sequence[StoredMessage]:
        """The active branch, oldest first, without replies that never said anything."""

    async def begin(self, items: Sequence[NewItem], model: str) -> None:
        """Durable when it returns; raises Conflict where somebody else has written since the history was read."""

    def said(self, text: str) -> None:
        """All that was said so far, for the next checkpoint."""

    async def finish(
        self, *, status: Status, finish_reason: str | None, usage: Mapping[str, object] | None, text: str
    ) -> None:
        """The first call counts. To be shielded. After Unavailable the outcome is kept and written later."""


@dataclass(frozen=True, slots=True)
class Outcome:
    status: Status
    finish_reason: str | None
    usage: Mapping[str, object] | None
    content: str


@dataclass(frozen=True, slots=True)
class UnstoredTurn:
    """A turn nobody asked to remember."""

    conversation_id: None = None
    reply_id: str = field(default_factory=lambda: uuid4().hex)
    history: Sequence[StoredMessage] = ()

    async def begin(self, items: Sequence[NewItem], model: str) -> None: ...

    def said(self, text: str) -> None: ...

    async def finish(
        self, *, status: Status, finish_reason: str | None, usage: Mapping[str, object] | None, text: str
    ) -> None: ...


class Store:
    """Repositories on short sessions; the one place where the database's errors become ours."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[ConversationRepository]:
        with in_our_words():
            async with self._database.read() as session:
                yield ConversationRepository(session)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[ConversationRepository]:
        with in_our_words():
            async with self._database.write() as session:
                yield ConversationRepository(session)

    async def ping(self) -> None:
        with in_our_words():
            await self._database.ping()


@contextmanager
def in_our_words() -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        if "position" not in str(error.orig):
            raise
        raise Conflict("The conversation was written to at the same time", param="conversation") from error
    except Exception as error:
        if not is_away(error):
            raise
        raise Unavailable("The conversation store is not reachable", retry_after=5) from error


@dataclass(frozen=True, slots=True)
class Past:
    """A conversation as a turn found it; `head` is its newest message."""

    conversation_id: str
    head: str | None
    history: tuple[StoredMessage, ...]


class StoredTurn:
    """Is in `running` from begin() until its end is durable."""

    def __init__(
        self, store: Store, running: dict[str, "StoredTurn"], *, writer: str, owner: str, past: Past | None
    ) -> None:
        self._store = store
        self._running = running
        self._writer = writer
        self._owner = owner
        self._past = past
        self.conversation_id = past.conversation_id if past else f"conv_{uuid4().hex}"
        self.reply_id = uuid4().hex
        self.history = past.history if past else ()
        self.text = ""
        self.outcome: Outcome | None = None

    async def begin(self, items: Sequence[NewItem], model: str) -> None:
        self._running[self.reply_id] = self  # before the commit: settle() spares what it finds here
        try:
            async with self._store.writing() as repository:
                head = await self._claim(repository)
                await repository.add_messages(self._messages(items, model, head))
        except BaseException:
            del self._running[self.reply_id]
            raise

    async def _claim(self, repository: ConversationRepository) -> Message | None:
        """The message to go on from, with the conversation locked until the transaction ends."""
        now = time.time()
        if self._past is None:
            new = Conversation(id=self.conversation_id, owner=self._owner, created_at=now, updated_at=now)
            await repository.add(new)
            return None
        if await repository.get(self.conversation_id, self._owner, lock=True) is None:
            raise _no_conversation(self.conversation_id)
        head = await repository.newest(self.conversation_id)
        if (head.id if head else None) != self._past.head:
            raise _busy()
        await repository.touch(self.conversation_id, now)
        return head

    def _messages(self, items: Sequence[NewItem], model: str, head: Message | None) -> list[Message]:
        """A chain that hangs on the head: each message is the parent of the next, the reply is the last."""
        now = time.time()
        ids = [*(uuid4().hex for _ in items), self.reply_id]
        parents = [head.id if head else None, *ids]
        messages = [
            Message(
                id=ids[nth],
                conversation_id=self.conversation_id,
                parent_id=parents[nth],
                position=(head.position + 1 if head else 0) + nth,
                role=item.role,
                content=item.content,
                status=COMPLETED,
                created_at=now,
                updated_at=now,
            )
            for nth, item in enumerate([*items, NewItem("assistant", "")])
        ]
        reply = messages[-1]
        reply.status, reply.model, reply.writer = IN_PROGRESS, model, self._writer
        return messages

    def said(self, text: str) -> None:
        self.text = text

    async def finish(
        self, *, status: Status, finish_reason: str | None, usage: Mapping[str, object] | None, text: str
    ) -> None:
        if self.reply_id not in self._running:
            return
        self.outcome = self.outcome or Outcome(status, finish_reason, usage, text)
        async with self._store.writing() as repository:
            await self.write_outcome(repository, self.outcome)
        self._running.pop(self.reply_id, None)

    async def write_outcome(self, repository: ConversationRepository, outcome: Outcome) -> None:
        await repository.finish(
            self.reply_id,
            self._writer,
            status=outcome.status,
            finish_reason=outcome.finish_reason,
            usage=outcome.usage,
            content=outcome.content,
            now=time.time(),
        )


class ConversationService:
    """One per process: `writer` says which process, and replies of that name which it does not know are from an
    earlier life."""

    def __init__(self, database: Database, *, writer: str, checkpoint_s: float = 5.0) -> None:
        self._store = Store(database)
        self._writer = writer
        self._checkpoint_s = checkpoint_s
        # far more than clocks of replicas may differ
        self._silence_s = max(3 * checkpoint_s, 15.0)
        self._running: dict[str, StoredTurn] = {}
        self._keeper: asyncio.Task[None] | None = None

    async def open(self, conversation: str | None, owner: str, *, create: bool = False) -> Turn:
        """Reads only: a request that is refused later on leaves nothing behind."""
        if conversation is None and not create:
            return UnstoredTurn()
        past = None if conversation is None else await self._past(conversation, owner)
        return StoredTurn(self._store, self._running, writer=self._writer, owner=owner, past=past)

    async def _past(self, conversation: str, owner: str) -> Past:
        async with self._store.reading() as repository:
            await _existing(repository, conversation, owner)
            messages = [_stored(message) for message in await repository.messages(conversation)]
        if not messages:
            return Past(conversation, None, ())
        if messages[-1].status == IN_PROGRESS:
            raise _busy()
        return Past(conversation, messages[-1].id, _active_branch(messages))

    async def messages(
        self, owner: str, conversation: str | None, *, limit: int, after: str | None = None
    ) -> list[StoredMessage]:
        """Oldest first; without a conversation those of the most recently used one."""
        async with self._store.reading() as repository:
            if conversation is not None:
                found = await _existing(repository, conversation, owner)
            elif (latest := await repository.latest(owner)) is not None:
                found = latest
            else:
                return []
            start = None if after is None else await _cursor(repository, after, owner, found)
            return [_stored(message) for message in await repository.messages(found.id, after=start, limit=limit)]

    async def message(self, message_id: str, owner: str) -> StoredMessage:
        if MESSAGE_ID.fullmatch(message_id):
            async with self._store.reading() as repository:
                if (message := await repository.message(message_id, owner)) is not None:
                    return _stored(message)
        raise NotFound(f"No message with id '{message_id[:64]}'", param="message_id")

    async def ping(self) -> None:
        """Raises Unavailable while the store is away."""
        await self._store.ping()

    async def start(self) -> None:
        await _attempt(self.settle)
        self._keeper = asyncio.create_task(self._keep(), name="conversation keeper")

    async def stop(self) -> None:
        """Writes once more what could not be written before."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            self._keeper = None
        await _attempt(self.checkpoint)

    async def _keep(self) -> None:
        for beat in itertools.count(1):
            await asyncio.sleep(self._checkpoint_s)
            await _attempt(self.checkpoint)
            if beat % 3 == 0:
                await _attempt(self.settle)

    async def checkpoint(self) -> None:
        """What this process is writing, in one transaction; outcomes that could not be written earlier come along."""
        ended = {turn: turn.outcome for turn in self._running.values() if turn.outcome is not None}
        texts = {turn.reply_id: turn.text for turn in self._running.values() if turn.outcome is None}
        if not ended and not texts:
            return
        async with self._store.writing() as repository:
            if texts:
                await repository.checkpoint(texts, self._writer, time.time())
            for turn, outcome in ended.items():
                await turn.write_outcome(repository, outcome)
        for turn in ended:
            self._running.pop(turn.reply_id, None)

    async def settle(self) -> None:
        """Replies that nobody is writing any more become incomplete, with what their last checkpoint saved."""
        async with self._store.reading() as repository:
            running = await repository.running()
        # Looked up after the read: a reply of ours is in `_running` before anybody can read it.
        abandoned = [message.id for message in running if self._is_abandoned(message)]
        if abandoned:
            async with self._store.writing() as repository:
                settled = await repository.settle(abandoned, time.time())
            logger.warning("%d replies were left unfinished, they are incomplete now", settled)

    def _is_abandoned(self, message: Message) -> bool:
        if message.id in self._running:
            return False
        return time.time() - message.updated_at > self._silence_s or _is_gone(message.writer, self._writer)


def this_writer() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _is_gone(writer: str | None, me: str) -> bool:
    """Known for processes of this machine only; our own name, met from outside, is from before a restart."""
    if writer is None or writer == me:
        return True
    host, _, pid = writer.rpartition(":")
    return host == me.rpartition(":")[0] and pid.isdigit() and not _is_alive(int(pid))


def _is_alive(pid: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 is not a question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


async def _attempt(step: Callable[[], Awaitable[None]]) -> None:
    try:
        await step()
    except Unavailable as error:
        logger.warning("%s: %s", error.message, error.__cause__)
    except Exception:
        logger.exception("Keeping the conversations failed, trying again at the next checkpoint")


async def _existing(repository: ConversationRepository, conversation: str, owner: str) -> Conversation:
    if CONVERSATION_ID.fullmatch(conversation):
        found = await repository.get(conversation, owner)
        if found is not None:
            return found
    raise _no_conversation(conversation)


async def _cursor(repository: ConversationRepository, after: str, owner: str, conversation: Conversation) -> Message:
    if MESSAGE_ID.fullmatch(after):
        message = await repository.message(after, owner)
        if message is not None and message.conversation_id == conversation.id:
            return message
    raise InvalidRequest("'after' is not a message of this conversation", param="after")


def _active_branch(messages: Sequence[StoredMessage]) -> tuple[StoredMessage, ...]:
    """From the newest message up its parents; replies that never said anything are skipped."""
    by_id = {message.id: message for message in messages}
    branch, at = [], messages[-1].id
    while at:
        branch.append(by_id[at])
        at = by_id[at].parent_id or ""
    return tuple(message for message in reversed(branch) if message.content or message.status != INCOMPLETE)


def _stored(message: Message) -> StoredMessage:
    return StoredMessage(
        id=message.id,
        conversation_id=message.conversation_id,
        parent_id=message.parent_id,
        position=message.position,
        role=message.role,
        content=message.content,
        status=message.status,
        finish_reason=message.finish_reason,
        usage=message.usage,
        model=message.model,
        created_at=message.created_at,
    )


def _no_conversation(conversation: str) -> NotFound:
    return NotFound(f"No conversation with id '{conversation[:64]}'", param="conversation")


def _busy() -> Conflict:
    return Conflict("Another request is writing to this conversation", param="conversation")
