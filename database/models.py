"""The tables. Times are seconds since the epoch, as on the wire.

A conversation owns `items`, each stored once in the form of the Conversations API, and `turns`, one for each requested
answer. Items are a tree (`parent_id`): a new answer to an old item is a sibling of the old answer. Every table has the
`owner`, so that one query suffices to select the rows of one caller.
"""

from typing import Any, Literal

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
    true,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

QUEUED: Literal["queued"] = "queued"
IN_PROGRESS: Literal["in_progress"] = "in_progress"
COMPLETED: Literal["completed"] = "completed"
INCOMPLETE: Literal["incomplete"] = "incomplete"
FAILED: Literal["failed"] = "failed"
CANCELLED: Literal["cancelled"] = "cancelled"
STATUSES = (QUEUED, IN_PROGRESS, COMPLETED, INCOMPLETE, FAILED, CANCELLED)
RUNNING = f"status IN ('{QUEUED}', '{IN_PROGRESS}')"

# JSON, not JSONB: JSONB rejects the NUL character and loses the order of keys, stored items must come back unchanged
Json = JSON(none_as_null=True)


class Base(MappedAsDataclass, DeclarativeBase, kw_only=True, eq=False, repr=False):
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        }
    )


class Conversation(Base):
    """`listed`: created as a conversation; else it only groups stored answers that continue each other."""

    __tablename__ = "conversations"
    __table_args__ = (
        Index(
            "ix_conversations_listed",
            "owner",
            "updated_at",
            "id",
            sqlite_where=text("listed"),
            postgresql_where=text("listed"),
        ),
        Index(None, "updated_at"),  # for the deletion of unused conversations
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[float] = mapped_column(Double)
    updated_at: Mapped[float] = mapped_column(Double)
    listed: Mapped[bool] = mapped_column(default=True, server_default=true())
    title: Mapped[str | None] = mapped_column(Text, default=None)
    metadata_: Mapped[dict[str, object]] = mapped_column("metadata", Json, default_factory=dict)


class Turn(Base):
    """One answer. Stored before it is generated; `writer` is the process that generates it, null once it is finished.

    `body` is the request of a background answer until that is finished: with it another process can claim a running
    turn without a writer. `attempt` counts how often a writer was lost; what an earlier attempt writes is left out.
    `partial_output` is the checkpoint: the output items so far. When the turn finishes they become rows of `items`.
    """

    __tablename__ = "turns"
    __table_args__ = (
        CheckConstraint(f"status IN {STATUSES}", name="status"),
        Index(None, "conversation_id"),
        Index(
            "ix_turns_stored",
            "owner",
            "kind",
            "created_at",
            "id",
            sqlite_where=text("stored"),
            postgresql_where=text("stored"),
        ),
        Index("ix_turns_running", "updated_at", sqlite_where=text(RUNNING), postgresql_where=text(RUNNING)),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    owner: Mapped[str] = mapped_column(String(128))
    conversation_id: Mapped[str] = mapped_column(ForeignKey("conversations.id", ondelete="CASCADE"))
    status: Mapped[str] = mapped_column(String(16))
    stored: Mapped[bool]  # can be retrieved by its id
    model: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Double)
    updated_at: Mapped[float] = mapped_column(Double)
    previous_id: Mapped[str | None] = mapped_column(String(64), default=None)  # the stored answer it continues
    parent_id: Mapped[str | None] = mapped_column(String(128), default=None)  # the parent of its output items
    background: Mapped[bool] = mapped_column(default=False)
    request: Mapped[dict[str, object]] = mapped_column(Json, default_factory=dict)
    metadata_: Mapped[dict[str, object]] = mapped_column("metadata", Json, default_factory=dict)
    fingerprint: Mapped[str | None] = mapped_column(Text, default=None)
    # by choice
    partial_output: Mapped[list[list[dict[str, object]]] | None] = mapped_column("said", Json, default=None)
    choices: Mapped[list[dict[str, object]] | None] = mapped_column(Json, default=None)  # how each ended
    usage: Mapped[dict[str, int] | None] = mapped_column(Json, default=None)
    error: Mapped[dict[str, object] | None] = mapped_column(Json, default=None)
    writer: Mapped[str | None] = mapped_column(Text, default=None)
    key_id: Mapped[str | None] = mapped_column(
        String(128), default=None
    )  # of the project's key that asked; null: the owner itself
    completed_at: Mapped[float | None] = mapped_column(Double, default=None)
    body: Mapped[dict[str, object] | None] = mapped_column(Json, default=None)
    attempt: Mapped[int] = mapped_column(default=0, server_default="0")


class Item(Base):
    """Its id is the client's or ours, and unique within its conversation only; `seq` is the order of insertion.

    `terms` are the words indexed for search: on SQLite in the virtual table `items_found`, on PostgreSQL in an index.
    """

    __tablename__ = "items"
    __table_args__ = (
        UniqueConstraint("conversation_id", "id"),
        ForeignKeyConstraint(
            ["conversation_id", "parent_id"], ["items.conversation_id", "items.id"], name="fk_items_parent_id"
        ),
        Index(None, "conversation_id", "seq"),
        Index(None, "conversation_id", "parent_id"),  # for finding the children of a deleted item
        Index(None, "turn_id"),
        Index(None, "owner", "seq"),
        Index(None, "owner", "id"),
    )

    seq: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, init=False)
    id: Mapped[str] = mapped_column(String(128))
    owner: Mapped[str] = mapped_column(String(128))
    conversation_id: Mapped[str] = mapped_column(ForeignKey("conversations.id", ondelete="CASCADE"))
    parent_id: Mapped[str | None] = mapped_column(String(128))
    type: Mapped[str] = mapped_column(String(64))
    data: Mapped[dict[str, Any]] = mapped_column(Json)  # as received, with its id
    terms: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Double)
    turn_id: Mapped[str | None] = mapped_column(ForeignKey("turns.id", ondelete="SET NULL"), default=None)
    choice: Mapped[int | None] = mapped_column(default=None)  # of the turn's answer; null for input items


class StreamBatch(Base):
    """A batch of events of a background stream, as JSON; `number` is that of the last event.

    `pieces` are the engine's pieces that the events were made of: an answer goes on from their tokens.
    """

    __tablename__ = "stream_batches"

    turn_id: Mapped[str] = mapped_column(ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    events: Mapped[str] = mapped_column(Text)
    pieces: Mapped[str | None] = mapped_column(Text, default=None)


class IdempotencyKey(Base):
    """The idempotency key of a request, and what the request created. `key` and `digest` are hashes."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index(None, "conversation_id"), Index(None, "turn_id"), Index(None, "created_at"))

    owner: Mapped[str] = mapped_column(String(128), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    conversation_id: Mapped[str] = mapped_column(ForeignKey("conversations.id", ondelete="CASCADE"))
    created_at: Mapped[float] = mapped_column(Double)
    turn_id: Mapped[str | None] = mapped_column(ForeignKey("turns.id", ondelete="CASCADE"), default=None)
    item_ids: Mapped[list[str] | None] = mapped_column(Json, default=None)


class Secret(Base):
    """A secret of the server, shared by its processes and created by the first that needs it."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(String(128))


class Process(Base):
    """A process that serves; it has a writer's name, and is gone if it was not seen for seconds."""

    __tablename__ = "processes"

    name: Mapped[str] = mapped_column(String(256), primary_key=True)
    seen_at: Mapped[float] = mapped_column(Double)
