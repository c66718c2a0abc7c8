"""The tables of uploads in parts. What is in a part lies in the folder of files, by its id."""

from typing import Literal

from sqlalchemy import BigInteger, CheckConstraint, Double, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from database.models import Base

PENDING: Literal["pending"] = "pending"
COMPLETED: Literal["completed"] = "completed"
CANCELLED: Literal["cancelled"] = "cancelled"
UPLOAD_STATUSES = (PENDING, COMPLETED, CANCELLED)


class Upload(Base):
    """Its parts are removed once it has ended, or from `expires_at` on; the row a day later."""

    __tablename__ = "uploads"
    __table_args__ = (
        CheckConstraint(f"status IN {UPLOAD_STATUSES}", name="status"),
        Index(None, "owner"),
        Index(None, "expires_at"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(128))
    purpose: Mapped[str] = mapped_column(String(32))
    filename: Mapped[str] = mapped_column(Text)
    bytes: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float] = mapped_column(Double)
    expires_at: Mapped[float] = mapped_column(Double)
    file_expires_after_s: Mapped[int | None] = mapped_column(Integer, default=None)


class UploadPart(Base):
    __tablename__ = "upload_parts"
    __table_args__ = (Index(None, "upload_id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"))
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[float] = mapped_column(Double)
