"""Statements on projects, service accounts and keys. The caller's session ends the transaction."""

from collections.abc import Sequence

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from database.admin_models import ApiKey, Project, RateLimit, ServiceAccount, Version

KEYS = "keys"  # the version's name
BUMP = text(
    "INSERT INTO versions (name, number) VALUES (:name, 1) "
    "ON CONFLICT (name) DO UPDATE SET number = versions.number + 1"
)


class KeyRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def version(self) -> int:
        return await self._session.scalar(select(Version.number).where(Version.name == KEYS)) or 0

    async def bump(self) -> None:
        """Every change of keys and projects does: processes read all of them again when the number has changed."""
        await self._session.execute(BUMP, {"name": KEYS})

    async def add(self, row: Project | ServiceAccount | ApiKey | RateLimit) -> None:
        self._session.add(row)
        await self._session.flush()

    async def projects(self) -> Sequence[Project]:
        return (await self._session.scalars(select(Project).order_by(Project.created_at, Project.id))).all()

    async def project(self, project_id: str) -> Project | None:
        return await self._session.get(Project, project_id)

    async def projects_named(self, name: str) -> Sequence[Project]:
        """The active ones."""
        query = select(Project).where(Project.name == name, Project.archived_at.is_(None))
        return (await self._session.scalars(query)).all()

    async def accounts(self, project_id: str) -> Sequence[ServiceAccount]:
        query = select(ServiceAccount).where(
            ServiceAccount.project_id == project_id, ServiceAccount.deleted_at.is_(None)
        )
        return (await self._session.scalars(query.order_by(ServiceAccount.created_at, ServiceAccount.id))).all()

    async def account(self, account_id: str) -> ServiceAccount | None:
        return await self._session.get(ServiceAccount, account_id)

    async def keys(self) -> Sequence[ApiKey]:
        """All, revoked ones too."""
        return (await self._session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id))).all()

    async def key(self, key_id: str) -> ApiKey | None:
        return await self._session.get(ApiKey, key_id)

    async def keys_named(self, name: str) -> Sequence[ApiKey]:
        """Those that are not revoked."""
        query = select(ApiKey).where(ApiKey.name == name, ApiKey.revoked_at.is_(None))
        return (await self._session.scalars(query)).all()

    async def of_digest(self, digest: str) -> ApiKey | None:
        """Also a revoked one."""
        return await self._session.scalar(select(ApiKey).where(ApiKey.digest == digest))

    async def of_project(self, project_id: str) -> Sequence[ApiKey]:
        """Those that are not revoked."""
        query = select(ApiKey).where(ApiKey.project_id == project_id, ApiKey.revoked_at.is_(None))
        return (await self._session.scalars(query.order_by(ApiKey.created_at, ApiKey.id))).all()

    async def of_account(self, account_id: str) -> Sequence[ApiKey]:
        """Those that are not revoked."""
        query = select(ApiKey).where(ApiKey.account_id == account_id, ApiKey.revoked_at.is_(None))
        return (await self._session.scalars(query)).all()

    async def rate_limits(self) -> Sequence[RateLimit]:
        return (await self._session.scalars(select(RateLimit))).all()

    async def rate_limit(self, project_id: str, model: str) -> RateLimit | None:
        return await self._session.get(RateLimit, (project_id, model))
