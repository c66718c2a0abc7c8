"""The table of files. What is in them lies in a folder (`services/file_contents.py`)."""

from typing import Literal

from sqlalchemy import BigInteger, CheckConstraint, Double, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from database.models import Base

UPLOADING: Literal["uploading"] = "uploading"
PROCESSED: Literal["processed"] = "processed"
DELETED: Literal["deleted"] = "deleted"
FILE_STATUSES = (UPLOADING, PROCESSED, DELETED)


class File(Base):
    """The row is there before its contents are, and until they are gone: a crash leaves no contents without a row.

    From `expires_at` on the sweep removes both; also of an upload that did not end, and of what is deleted.
    """

    __tablename__ = "files"
    __table_args__ = (
        CheckConstraint(f"status IN {FILE_STATUSES}", name="status"),
        Index(None, "owner", "created_at", "id"),
        Index(None, "expires_at"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(128))
    purpose: Mapped[str] = mapped_column(String(32))
    filename: Mapped[str] = mapped_column(Text)
    bytes: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float] = mapped_column(Double)
    expires_at: Mapped[float | None] = mapped_column(Double, default=None)
