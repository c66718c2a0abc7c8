"""The tables of administration: projects, their keys and limits, and the audit log.

Rows stay when a key is revoked or a project archived.
"""

from sqlalchemy import BigInteger, CheckConstraint, Double, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from database.models import Base, Json

ROLES = ("user", "admin")


class Project(Base):
    """Owns what its keys store: its id is the `owner` of conversations, answers and items."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Double)
    archived_at: Mapped[float | None] = mapped_column(Double, default=None)


class ServiceAccount(Base):
    """A holder of keys in a project, as OpenAI's administration has it."""

    __tablename__ = "service_accounts"
    __table_args__ = (Index(None, "project_id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Double)
    deleted_at: Mapped[float | None] = mapped_column(Double, default=None)


class ApiKey(Base):
    """`digest` is the SHA-256 of the key, `hint` its last characters. Null limits: none; null `models`: all."""

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint(f"role IN {ROLES}", name="role"),
        Index(None, "project_id"),
        Index(None, "account_id"),
        Index(None, "digest", unique=True),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    account_id: Mapped[str] = mapped_column(ForeignKey("service_accounts.id"))
    name: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(String(64))
    hint: Mapped[str] = mapped_column(String(8))
    role: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float] = mapped_column(Double)
    models: Mapped[list[str] | None] = mapped_column(Json, default=None)
    rpm: Mapped[int | None] = mapped_column(BigInteger, default=None)
    tpm: Mapped[int | None] = mapped_column(BigInteger, default=None)
    parallel: Mapped[int | None] = mapped_column(BigInteger, default=None)
    budget: Mapped[int | None] = mapped_column(BigInteger, default=None)
    expires_at: Mapped[float | None] = mapped_column(Double, default=None)
    revoked_at: Mapped[float | None] = mapped_column(Double, default=None)


class RateLimit(Base):
    """Of all keys of a project together, for one model. Null: no limit."""

    __tablename__ = "rate_limits"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    model: Mapped[str] = mapped_column(String(256), primary_key=True)
    rpm: Mapped[int | None] = mapped_column(BigInteger, default=None)
    tpm: Mapped[int | None] = mapped_column(BigInteger, default=None)


class AuditEvent(Base):
    """What was administered or deleted, and by whom: `actor` is a key's id, or `cli:` and a user of the machine."""

    __tablename__ = "audit_events"
    __table_args__ = (Index(None, "at"),)

    seq: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, init=False)
    at: Mapped[float] = mapped_column(Double)
    actor: Mapped[str] = mapped_column(String(128))
    owner: Mapped[str] = mapped_column(String(128))  # of the target: a project, or a key of the settings
    action: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(256))
    details: Mapped[dict[str, object] | None] = mapped_column(Json, default=None)


class Version(Base):
    """A number that grows with every change of what processes keep in memory."""

    __tablename__ = "versions"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)
