"""API keys that are kept in the database, beside those of the settings.

A key is 256 random bits, so its SHA-256 can be stored: a slow hash protects secrets that can be guessed, which these
cannot be, and would cost every request 50 ms of processor time. Processes keep all keys in memory, and read them again
when their version number has changed.
"""

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypedDict
from uuid import uuid4

from database.admin_models import ApiKey, Project, RateLimit, ServiceAccount
from database.repositories import Repositories
from database.session import Database
from services.callers import Caller, KeyLimits, Role, current
from services.errors import InvalidRequest, NotFound, Unavailable
from services.history import audit
from services.history.store import Store

logger = logging.getLogger(__name__)

PREFIX = "sk-parley-"
PROJECT = "proj_"
POLL_S = 2.0  # a change is known to every process within this time and that of a statement
LOOK_S = 0.25  # between looks for keys that are not known: guesses must not become statements
UNKNOWN = 1024  # digests that a look has not found
HINT = 4  # last characters, shown in lists


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    name: str
    project_id: str
    account_id: str | None = None  # None: a new service account of the key's name
    role: Role = "user"
    models: Sequence[str] | None = None
    limits: KeyLimits = field(default=KeyLimits())
    expires_at: float | None = None


class KeyChange(TypedDict, total=False):
    """What is left out stays as it is; None lifts a restriction."""

    name: str
    models: list[str] | None
    rpm: int | None
    tpm: int | None
    parallel: int | None
    budget: int | None
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class CreatedKey:
    row: ApiKey
    account: ServiceAccount
    value: str = field(repr=False)  # shown once


@dataclass(frozen=True, slots=True)
class KnownKey:
    caller: Caller
    digest: bytes
    expires_at: float | None

    def is_valid(self) -> bool:
        return self.expires_at is None or time.time() < self.expires_at


@dataclass(frozen=True, slots=True)
class Snapshot:
    version: int = 0
    by_digest: Mapping[bytes, KnownKey] = field(default_factory=dict)
    by_id: Mapping[str, KnownKey] = field(default_factory=dict)
    has_keys: bool = False  # or had: revoking the last one must not open the server


class KeyService:
    def __init__(self, database: Database) -> None:
        self._store = Store(database)
        self._snapshot = Snapshot()
        self._poll: asyncio.Task[None] | None = None
        self._refreshing = asyncio.Lock()
        self._looked = -LOOK_S
        self._next_look: asyncio.Task[bool] | None = None
        self._unknown: set[bytes] = set()  # of the snapshot

    async def start(self) -> None:
        """Raises Unavailable: without its keys a server would be open."""
        await self.refresh()
        self._poll = asyncio.create_task(self._refresh_forever(), name="keys")

    async def stop(self) -> None:
        if self._poll:
            self._poll.cancel()

    @property
    def has_keys(self) -> bool:
        return self._snapshot.has_keys

    def find(self, digest: bytes) -> KnownKey | None:
        """Of a valid key. The time that a lookup takes depends on digests, which callers cannot choose."""
        found = self._snapshot.by_digest.get(digest)
        return found if found and found.is_valid() else None

    def by_id(self, key_id: str) -> KnownKey | None:
        found = self._snapshot.by_id.get(key_id)
        return found if found and found.is_valid() else None

    def caller_of(self, owner: str, key_id: str | None) -> Caller:
        """Of an answer that goes on here; without the limits of a key that is not valid any more."""
        found = self.by_id(key_id) if key_id else None
        return found.caller if found else Caller(owner, key_id or "")

    async def refresh(self) -> None:
        async with self._refreshing, self._store.reading() as repositories:
            version = await repositories.keys.version()
            if version != self._snapshot.version:
                keys = repositories.keys
                self._snapshot = _snapshot(version, await keys.keys(), await keys.projects(), await keys.rate_limits())
                self._unknown.clear()

    async def look_for(self, digest: bytes) -> None:
        """Reads the keys again for one that is not known here, as one that another process has just made.

        Keys are made before they are used: what a look that began after a key's use has not found is no key until
        another snapshot is read.
        """
        if digest in self._unknown:
            return
        if self._next_look is None:
            self._next_look = asyncio.create_task(self._look(), name="look for keys")
        if await asyncio.shield(self._next_look) and digest not in self._snapshot.by_digest:
            if len(self._unknown) >= UNKNOWN:
                self._unknown.clear()
            self._unknown.add(digest)

    async def _look(self) -> bool:
        """Shared by all who ask before it begins. False: the database did not answer."""
        await asyncio.sleep(max(0.0, self._looked + LOOK_S - time.monotonic()))
        self._next_look, self._looked = None, time.monotonic()
        with suppress(Unavailable):  # what is known stays
            await self.refresh()
            return True
        return False

    async def reloaded(self) -> None:
        """An administrator has the settings read again: that is recorded, and these keys are read again, too."""
        async with self._store.writing() as repositories:
            audit.record(repositories, current().owner, "settings.reloaded", "settings")
        await self.refresh()

    async def _refresh_forever(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            with suppress(Unavailable):  # an outage is logged by the checkpoints; what is known stays
                await self.refresh()

    async def create(self, new: NewKey) -> CreatedKey:
        async with self._store.writing() as repositories:
            created = await add_key(repositories, new)
        await self.refresh()
        return created

    async def keys(self) -> Sequence[tuple[ApiKey, Project]]:
        async with self._store.reading() as repositories:
            projects = {each.id: each for each in await repositories.keys.projects()}
            return [(each, projects[each.project_id]) for each in await repositories.keys.keys()]

    async def update(self, key: str, change: KeyChange) -> ApiKey:
        """`key`: its id or name."""
        async with self._store.writing() as repositories:
            row = await _one_key(repositories, key)
            await change_key(repositories, row, change)
        await self.refresh()
        return row

    async def rotate(self, key: str) -> CreatedKey:
        """Gives a key (by its id or name) a new value; the old one is refused from then on."""
        async with self._store.writing() as repositories:
            row = await _one_key(repositories, key)
            value = _set_value(row)
            await repositories.keys.bump()
            audit.record(repositories, row.project_id, "api_key.rotated", row.id)
            account = await repositories.keys.account(row.account_id)
            assert account is not None
        await self.refresh()
        return CreatedKey(row, account, value)

    async def revoke(self, key: str) -> ApiKey:
        async with self._store.writing() as repositories:
            row = await _one_key(repositories, key)
            await revoke_key(repositories, row)
        await self.refresh()
        return row

    async def create_in(self, project: str | None, new: NewKey) -> tuple[CreatedKey, Project]:
        """`project`: an id, or a name, of which a new one is made if there is none. None: a project of its own."""
        async with self._store.writing() as repositories:
            found = await _project(repositories, project) if project is not None else None
            owner = found or await add_project(repositories, new.name if project is None else project)
            created = await add_key(repositories, replace(new, project_id=owner.id))
        await self.refresh()
        return created, owner


async def _project(repositories: Repositories, project: str) -> Project | None:
    if project.startswith(PROJECT):
        found = await repositories.keys.project(project)
        if found is None:
            raise project_not_found(project)
        return found
    named = await repositories.keys.projects_named(project)
    if len(named) > 1:
        raise InvalidRequest(f"Several projects are called '{project[:64]}': name one by its id")
    return named[0] if named else None


async def add_project(repositories: Repositories, name: str) -> Project:
    project = Project(id=PROJECT + uuid4().hex[:24], name=name, created_at=time.time())
    await repositories.keys.add(project)
    await repositories.keys.bump()
    audit.record(repositories, project.id, "project.created", project.id, name=name)
    return project


async def add_key(repositories: Repositories, new: NewKey) -> CreatedKey:
    project = await repositories.keys.project(new.project_id)
    if project is None:
        raise project_not_found(new.project_id)
    active(project)
    account = await _account(repositories, new)
    row = ApiKey(
        id=f"key_{uuid4().hex[:24]}",
        project_id=new.project_id,
        account_id=account.id,
        name=new.name,
        digest="",
        hint="",
        role=new.role,
        models=None if new.models is None else list(new.models),
        rpm=new.limits.rpm,
        tpm=new.limits.tpm,
        parallel=new.limits.parallel,
        budget=new.limits.budget,
        created_at=time.time(),
        expires_at=new.expires_at,
    )
    value = _set_value(row)
    await repositories.keys.add(row)
    await repositories.keys.bump()
    audit.record(repositories, row.project_id, "api_key.created", row.id, name=row.name, role=row.role)
    return CreatedKey(row, account, value)


async def add_account(repositories: Repositories, project_id: str, name: str) -> ServiceAccount:
    account = ServiceAccount(
        id=f"svc_acct_{uuid4().hex[:24]}", project_id=project_id, name=name, created_at=time.time()
    )
    await repositories.keys.add(account)
    audit.record(repositories, project_id, "service_account.created", account.id, name=name)
    return account


async def change_key(repositories: Repositories, row: ApiKey, change: KeyChange) -> None:
    if row.expires_at is not None and row.expires_at <= time.time():
        raise InvalidRequest("The key has expired")
    for name, value in change.items():
        setattr(row, name, value)
    await repositories.keys.bump()
    audit.record(repositories, row.project_id, "api_key.updated", row.id, fields=sorted(change))


async def revoke_key(repositories: Repositories, row: ApiKey) -> None:
    row.revoked_at = time.time()
    await repositories.keys.bump()
    audit.record(repositories, row.project_id, "api_key.deleted", row.id)


def active(project: Project) -> Project:
    if project.archived_at is not None:
        raise InvalidRequest(f"The project '{project.id}' is archived")
    return project


def project_not_found(project: str) -> NotFound:
    return NotFound(f"No project '{project[:64]}'")


def limits_of(row: ApiKey) -> KeyLimits:
    return KeyLimits(row.rpm, row.tpm, row.parallel, row.budget)


async def _account(repositories: Repositories, new: NewKey) -> ServiceAccount:
    if new.account_id is None:
        return await add_account(repositories, new.project_id, new.name)
    account = await repositories.keys.account(new.account_id)
    if account is None or account.project_id != new.project_id or account.deleted_at is not None:
        raise NotFound(f"No service account with id '{new.account_id[:64]}'")
    return account


async def _one_key(repositories: Repositories, key: str) -> ApiKey:
    found = await repositories.keys.key(key)
    named = [found] if found else await repositories.keys.keys_named(key)
    if not named or named[0].revoked_at is not None:
        raise NotFound(f"No key '{key[:64]}'")
    if len(named) > 1:
        raise InvalidRequest(f"Several keys are called '{key[:64]}': name one by its id")
    return named[0]


def _set_value(row: ApiKey) -> str:
    value = PREFIX + secrets.token_urlsafe(32)
    row.digest, row.hint = hashlib.sha256(value.encode()).hexdigest(), value[-HINT:]
    return value


def _snapshot(
    version: int, rows: Sequence[ApiKey], projects: Sequence[Project], rate_limits: Sequence[RateLimit]
) -> Snapshot:
    archived = {each.id for each in projects if each.archived_at is not None}
    limits: dict[str, dict[str, KeyLimits]] = {}
    for each in rate_limits:
        limits.setdefault(each.project_id, {})[each.model] = KeyLimits(each.rpm, each.tpm)
    known = {
        row.id: _known(row, limits.get(row.project_id, {}))
        for row in rows
        if row.revoked_at is None and row.project_id not in archived
    }
    return Snapshot(version, {each.digest: each for each in known.values()}, known, has_keys=bool(rows))


def _known(row: ApiKey, project_limits: Mapping[str, KeyLimits]) -> KnownKey:
    role: Role = "admin" if row.role == "admin" else "user"
    models = None if row.models is None else frozenset(row.models)
    caller = Caller(row.project_id, row.id, role, models, limits_of(row), project_limits)
    return KnownKey(caller, bytes.fromhex(row.digest), row.expires_at)
