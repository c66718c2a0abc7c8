"""The tables. Times are seconds since the epoch, as on the wire.

A conversation owns everything that was said in it: `items`, each once, in the form of the Conversations API, and
`turns`, one for each answer that was asked for. Items are a tree (`parent_id`): a new answer to an old item is a
sibling of the old answer. `owner` stands in every table, so that no query needs a second one to keep people apart.
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

# JSON, not JSONB: JSONB refuses the NUL character and forgets the order of keys, what was said comes back unchanged
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
    """`listed`: begun as a conversation; else it only holds together answers that were stored one by one."""

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
        Index(None, "updated_at"),  # what has not been used for too long is looked for here
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[float] = mapped_column(Double)
    updated_at: Mapped[float] = mapped_column(Double)
    listed: Mapped[bool] = mapped_column(default=True, server_default=true())
    title: Mapped[str | None] = mapped_column(Text, default=None)
    metadata_: Mapped[dict[str, object]] = mapped_column("metadata", Json, default_factory=dict)


class Turn(Base):
    """One answer. Written before it is generated; `writer` is who goes on with it, null once it is finished.

    `said` is the checkpoint: the output items so far. Once the turn is over they are items like all others.
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
    stored: Mapped[bool]  # to be found again by its id
    model: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Double)
    updated_at: Mapped[float] = mapped_column(Double)
    previous_id: Mapped[str | None] = mapped_column(String(64), default=None)  # the answer it goes on from, if named
    parent_id: Mapped[str | None] = mapped_column(String(128), default=None)  # the item that what is said hangs on
    background: Mapped[bool] = mapped_column(default=False)
    request: Mapped[dict[str, object]] = mapped_column(Json, default_factory=dict)
    metadata_: Mapped[dict[str, object]] = mapped_column("metadata", Json, default_factory=dict)
    fingerprint: Mapped[str | None] = mapped_column(Text, default=None)
    said: Mapped[list[list[dict[str, object]]] | None] = mapped_column(Json, default=None)  # by choice
    choices: Mapped[list[dict[str, object]] | None] = mapped_column(Json, default=None)  # how each ended
    usage: Mapped[dict[str, int] | None] = mapped_column(Json, default=None)
    error: Mapped[dict[str, object] | None] = mapped_column(Json, default=None)
    writer: Mapped[str | None] = mapped_column(Text, default=None)
    completed_at: Mapped[float | None] = mapped_column(Double, default=None)


class Item(Base):
    """Its id is the client's or ours, and its own in its conversation only; `seq` is the order in which items came.

    `terms` are the words by which it is found: on SQLite in the virtual table `items_found`, on PostgreSQL in an index.
    """

    __tablename__ = "items"
    __table_args__ = (
        UniqueConstraint("conversation_id", "id"),
        ForeignKeyConstraint(
            ["conversation_id", "parent_id"], ["items.conversation_id", "items.id"], name="fk_items_parent_id"
        ),
        Index(None, "conversation_id", "seq"),
        Index(None, "conversation_id", "parent_id"),  # a delete looks here for children
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
    data: Mapped[dict[str, Any]] = mapped_column(Json)  # as it came, with its id
    terms: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Double)
    turn_id: Mapped[str | None] = mapped_column(ForeignKey("turns.id", ondelete="SET NULL"), default=None)
    choice: Mapped[int | None] = mapped_column(default=None)  # of the turn's answer; none: it was given, not said


class StreamBatch(Base):
    """Some events of a turn that goes on without a reader, as JSON; `number` is the last one's."""

    __tablename__ = "stream_batches"

    turn_id: Mapped[str] = mapped_column(ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    events: Mapped[str] = mapped_column(Text)


class IdempotencyKey(Base):
    """A request that may come again, and what became of it the first time. Key and digest are hashes."""

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
    """Of the server's own, shared by its processes: made by the first that needs it."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(String(128))
