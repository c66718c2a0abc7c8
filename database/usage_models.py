"""The tables of usage, by hour, key, model and kind, and of the limits on it."""

from sqlalchemy import BigInteger, Double, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from database.models import Base, Json


class UsageHour(Base):
    """`hour` is its beginning, in seconds since the epoch; `key_id` the owner itself for keys of the settings."""

    __tablename__ = "usage_hours"
    __table_args__ = (Index(None, "key_id", "hour"),)

    hour: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    owner: Mapped[str] = mapped_column(String(128), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    model: Mapped[str] = mapped_column(String(256), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    errors: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)  # of the prompts
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    reasoning_tokens: Mapped[int] = mapped_column(BigInteger)  # of the completions
    seconds: Mapped[float] = mapped_column(Double)


class UsageWriter(Base):
    """The last batch of counts that a process has written: one whose commit was not confirmed is not written twice."""

    __tablename__ = "usage_writers"

    writer: Mapped[str] = mapped_column(String(255), primary_key=True)
    batch: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[float] = mapped_column(Double)


class LimitState(Base):
    """What is used of a subject's limits (a key; a project for a model), where several processes share it."""

    __tablename__ = "limit_states"

    subject: Mapped[str] = mapped_column(String(512), primary_key=True)
    state: Mapped[dict[str, object] | None] = mapped_column(Json, default=None)
