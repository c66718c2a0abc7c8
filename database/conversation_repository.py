"""Every statement about conversations and their messages. The caller's session decides where a transaction ends."""

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import bindparam, literal_column, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from database.models import IN_PROGRESS, INCOMPLETE, Conversation, Message

# spelt out, not bound: only then both databases see that the partial index answers it
RUNNING = Message.status == literal_column(f"'{IN_PROGRESS}'")


class ConversationRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, conversation_id: str, owner: str, *, lock: bool = False) -> Conversation | None:
        """`lock`: nobody else writes to it until the transaction ends (on SQLite every writer is alone anyway)."""
        query = select(Conversation).where(Conversation.id == conversation_id, Conversation.owner == owner)
        return await self._session.scalar(query.with_for_update() if lock else query)

    async def latest(self, owner: str) -> Conversation | None:
        query = select(Conversation).where(Conversation.owner == owner)
        return await self._session.scalar(query.order_by(Conversation.updated_at.desc()).limit(1))

    async def add(self, conversation: Conversation) -> None:
        self._session.add(conversation)
        await self._session.flush()

    async def add_messages(self, messages: Sequence[Message]) -> None:
        """In the order of their positions: a parent comes before its children."""
        self._session.add_all(messages)
        await self._session.flush()

    async def messages(
        self, conversation_id: str, *, after: Message | None = None, limit: int | None = None
    ) -> Sequence[Message]:
        query = select(Message).where(Message.conversation_id == conversation_id)
        if after is not None:
            query = query.where(Message.position > after.position)
        return (await self._session.scalars(query.order_by(Message.position).limit(limit))).all()

    async def message(self, message_id: str, owner: str) -> Message | None:
        query = select(Message).join(Conversation, Conversation.id == Message.conversation_id)
        return await self._session.scalar(query.where(Message.id == message_id, Conversation.owner == owner))

    async def newest(self, conversation_id: str) -> Message | None:
        query = select(Message).where(Message.conversation_id == conversation_id)
        return await self._session.scalar(query.order_by(Message.position.desc()).limit(1))

    async def checkpoint(self, texts: Mapping[str, str], writer: str, now: float) -> None:
        """What was said so far, by message id; says by the way that the writer is alive."""
        statement = (
            update(Message)
            .where(Message.id == bindparam("reply"), Message.writer == writer)
            .values(content=bindparam("said"), updated_at=now)
        )
        # in the order of ids, so that two processes never wait for each other
        rows = [{"reply": reply, "said": texts[reply]} for reply in sorted(texts)]
        await (await self._session.connection()).execute(statement, rows)

    async def finish(
        self,
        message_id: str,
        writer: str,
        *,
        status: str,
        finish_reason: str | None,
        usage: Mapping[str, object] | None,
        content: str,
        now: float,
    ) -> None:
        """Only by its writer and only once; also where others have given the reply up meanwhile."""
        mine = update(Message).where(Message.id == message_id, Message.writer == writer)
        finished = mine.values(
            status=status, finish_reason=finish_reason, usage=usage, content=content, writer=None, updated_at=now
        ).returning(Message.conversation_id)
        conversation_id = await self._session.scalar(finished)
        await self.touch(conversation_id, now)

    async def touch(self, conversation_id: str | None, now: float) -> None:
        await self._session.execute(
            update(Conversation).where(Conversation.id == conversation_id).values(updated_at=now)
        )

    async def running(self) -> Sequence[Message]:
        return (await self._session.scalars(select(Message).where(RUNNING))).all()

    async def settle(self, message_ids: Collection[str], now: float) -> int:
        """Gives up those of the replies that are still in progress; what was said stays."""
        statement = update(Message).where(RUNNING, Message.id.in_(message_ids))
        given_up = statement.values(status=INCOMPLETE, updated_at=now).returning(Message.id)
        return len((await self._session.scalars(given_up)).all())
