"""The tables of batches. Their requests stay in the input file; results are rows until the output files are written."""

from typing import Literal

from sqlalchemy import CheckConstraint, Double, ForeignKey, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from database.models import Base, Json

VALIDATING: Literal["validating"] = "validating"
FAILED: Literal["failed"] = "failed"
IN_PROGRESS: Literal["in_progress"] = "in_progress"
FINALIZING: Literal["finalizing"] = "finalizing"
COMPLETED: Literal["completed"] = "completed"
EXPIRED: Literal["expired"] = "expired"
CANCELLING: Literal["cancelling"] = "cancelling"
CANCELLED: Literal["cancelled"] = "cancelled"
STATUSES = (VALIDATING, FAILED, IN_PROGRESS, FINALIZING, COMPLETED, EXPIRED, CANCELLING, CANCELLED)
UNFINISHED = "ended_at IS NULL"


class Batch(Base):
    """`writer`: the process that runs it; null: any process may claim it. `times`: when it came to each status."""

    __tablename__ = "batches"
    __table_args__ = (
        CheckConstraint(f"status IN {STATUSES}", name="status"),
        Index(None, "owner", "created_at", "id"),
        Index("ix_batches_unfinished", "created_at", sqlite_where=text(UNFINISHED), postgresql_where=text(UNFINISHED)),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(128))
    key_id: Mapped[str | None] = mapped_column(String(128))  # of the project's key that asked; null: the owner itself
    endpoint: Mapped[str] = mapped_column(String(64))
    input_file_id: Mapped[str] = mapped_column(String(64))
    completion_window: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float] = mapped_column(Double)
    expires_at: Mapped[float] = mapped_column(Double)
    output_expires_after_s: Mapped[int | None] = mapped_column(Integer, default=None)
    metadata_: Mapped[dict[str, object] | None] = mapped_column("metadata", Json, default=None)
    times: Mapped[dict[str, float]] = mapped_column(Json, default_factory=dict)
    ended_at: Mapped[float | None] = mapped_column(Double, default=None)
    writer: Mapped[str | None] = mapped_column(Text, default=None)
    attempts: Mapped[int] = mapped_column(Integer, default=0)  # that ended without a new result
    model: Mapped[str | None] = mapped_column(Text, default=None)  # null: the requests name several, or none
    errors: Mapped[list[dict[str, object]] | None] = mapped_column(Json, default=None)
    total: Mapped[int] = mapped_column(Integer, default=0)
    completed: Mapped[int] = mapped_column(Integer, default=0)
    failed: Mapped[int] = mapped_column(Integer, default=0)
    usage: Mapped[dict[str, int]] = mapped_column(Json, default_factory=dict)
    output_file_id: Mapped[str | None] = mapped_column(String(64), default=None)
    error_file_id: Mapped[str | None] = mapped_column(String(64), default=None)


class BatchResult(Base):
    """The result of one line of the input file, as it is in an output file."""

    __tablename__ = "batch_results"

    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True)
    line: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    failed: Mapped[bool]
    data: Mapped[str] = mapped_column(Text)
