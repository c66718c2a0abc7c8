"""The tables. Times are seconds since the epoch, as on the wire."""

from sqlalchemy import JSON, CheckConstraint, Double, ForeignKey, Index, MetaData, String, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

IN_PROGRESS, COMPLETED, INCOMPLETE = "in_progress", "completed", "incomplete"

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
    __tablename__ = "conversations"
    __table_args__ = (Index(None, "owner", "updated_at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[float] = mapped_column(Double)
    updated_at: Mapped[float] = mapped_column(Double)
    metadata_: Mapped[dict[str, str]] = mapped_column("metadata", Json, default_factory=dict)


class Message(Base):
    """A reply is written `in_progress` first; `writer` is who goes on with it, null once it is finished."""

    __tablename__ = "messages"
    __table_args__ = (
        UniqueConstraint("conversation_id", "position"),
        CheckConstraint(f"status IN ('{IN_PROGRESS}', '{COMPLETED}', '{INCOMPLETE}')", name="status"),
        Index(None, "parent_id"),  # a delete looks here for children
        Index(
            "ix_messages_in_progress",
            "updated_at",
            sqlite_where=text(f"status = '{IN_PROGRESS}'"),
            postgresql_where=text(f"status = '{IN_PROGRESS}'"),
        ),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    conversation_id: Mapped[str] = mapped_column(ForeignKey("conversations.id", ondelete="CASCADE"))
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("messages.id"))
    position: Mapped[int]
    role: Mapped[str] = mapped_column(String(32))
    content: Mapped[str | list[dict[str, object]] | None] = mapped_column(Json)
    status: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float] = mapped_column(Double)
    updated_at: Mapped[float] = mapped_column(Double)
    finish_reason: Mapped[str | None] = mapped_column(String(32), default=None)
    usage: Mapped[dict[str, object] | None] = mapped_column(Json, default=None)
    model: Mapped[str | None] = mapped_column(default=None)
    writer: Mapped[str | None] = mapped_column(default=None)
