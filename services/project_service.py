"""Projects, their service accounts, keys and rate limits, as OpenAI's administration has them."""

import time
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar, cast

from database import admin_models as rows
from database.repositories import Repositories
from database.session import Database
from schemas import admin_schema as wire
from schemas.page_schema import Page, page
from services.callers import KeyLimits
from services.errors import InvalidRequest, NotFound
from services.history import audit
from services.history.store import Store
from services.key_service import (
    CreatedKey,
    KeyChange,
    KeyService,
    NewKey,
    active,
    add_account,
    add_key,
    add_project,
    change_key,
    limits_of,
    project_not_found,
    revoke_key,
)
from services.model_service import ModelManager

T = TypeVar("T")
Row = TypeVar("Row", rows.Project, rows.ServiceAccount, rows.ApiKey)

LIMITS = set(wire.KeyLimits.model_fields)
RATE_LIMIT = "rl-"  # and the model's name: the id of a rate limit


class ProjectService:
    """Every change is known to this process on return, and to others within seconds."""

    def __init__(self, database: Database, keys: KeyService, models: ModelManager) -> None:
        self._store = Store(database)
        self._keys = keys
        self._models = models

    async def create(self, name: str) -> wire.Project:
        async with self._store.writing() as repositories:
            created = await add_project(repositories, name)
        await self._keys.refresh()
        return _project(created)

    async def page(self, *, limit: int, after: str | None, include_archived: bool) -> Page[wire.Project]:
        async with self._store.reading() as repositories:
            found = await repositories.keys.projects()
        return _page([each for each in found if include_archived or each.archived_at is None], _project, limit, after)

    async def get(self, project_id: str) -> wire.Project:
        async with self._store.reading() as repositories:
            return _project(await _found(repositories, project_id))

    async def rename(self, project_id: str, name: str) -> wire.Project:
        async with self._store.writing() as repositories:
            project = active(await _found(repositories, project_id))
            project.name = name
            audit.record(repositories, project_id, "project.updated", project_id, name=name)
        return _project(project)

    async def archive(self, project_id: str) -> wire.Project:
        """Its keys are refused from then on; what it has stored stays."""
        async with self._store.writing() as repositories:
            project = active(await _found(repositories, project_id))
            project.archived_at = time.time()
            audit.record(repositories, project_id, "project.archived", project_id)
            await repositories.keys.bump()
        await self._keys.refresh()
        return _project(project)

    # --- service accounts ---

    async def create_account(self, project_id: str, new: wire.NewServiceAccount) -> wire.CreatedServiceAccount:
        async with self._store.writing() as repositories:
            active(await _found(repositories, project_id))
            account = await add_account(repositories, project_id, new.name)
            key = None
            if not new.create_service_account_only:
                key = await add_key(repositories, _new_key(project_id, account, new, new.name))
        await self._keys.refresh()
        created = _account(account)
        return wire.CreatedServiceAccount(**created.model_dump(), api_key=key and _created(key))

    async def accounts(self, project_id: str, *, limit: int, after: str | None) -> Page[wire.ServiceAccount]:
        async with self._store.reading() as repositories:
            await _found(repositories, project_id)
            found = await repositories.keys.accounts(project_id)
        return _page(found, _account, limit, after)

    async def account(self, project_id: str, account_id: str) -> wire.ServiceAccount:
        async with self._store.reading() as repositories:
            return _account(await _found_account(repositories, project_id, account_id))

    async def rename_account(self, project_id: str, account_id: str, name: str | None) -> wire.ServiceAccount:
        async with self._store.writing() as repositories:
            account = await _found_account(repositories, project_id, account_id)
            account.name = name or account.name
            audit.record(repositories, project_id, "service_account.updated", account_id, name=account.name)
        return _account(account)

    async def delete_account(self, project_id: str, account_id: str) -> wire.DeletedServiceAccount:
        """Revokes its keys."""
        async with self._store.writing() as repositories:
            account = await _found_account(repositories, project_id, account_id)
            account.deleted_at = time.time()
            for key in await repositories.keys.of_account(account_id):
                await revoke_key(repositories, key)
            audit.record(repositories, project_id, "service_account.deleted", account_id)
        await self._keys.refresh()
        return wire.DeletedServiceAccount(id=account_id)

    # --- keys ---

    async def create_key(self, project_id: str, account_id: str, new: wire.NewKey) -> wire.CreatedKey:
        async with self._store.writing() as repositories:
            account = await _found_account(repositories, project_id, account_id)
            key = await add_key(repositories, _new_key(project_id, account, new, new.name or account.name))
        await self._keys.refresh()
        return _created(key)

    async def keys(
        self, project_id: str, *, limit: int, after: str | None, access: Literal["active", "inactive", "any"]
    ) -> Page[wire.ProjectKey]:
        """Those that are not revoked, whose accounts are there: none of them is `inactive`."""
        async with self._store.reading() as repositories:
            await _found(repositories, project_id)
            found = [] if access == "inactive" else await repositories.keys.of_project(project_id)
            accounts = {each.id: each for each in await repositories.keys.accounts(project_id)}
            used = await repositories.usage.last_hours([each.id for each in found])
        return _page(found, lambda key: _key(key, accounts[key.account_id], used.get(key.id)), limit, after)

    async def key(self, project_id: str, key_id: str) -> wire.ProjectKey:
        async with self._store.reading() as repositories:
            return await _shown(repositories, await _found_key(repositories, project_id, key_id))

    async def update_key(self, project_id: str, key_id: str, update: wire.KeyUpdate) -> wire.ProjectKey:
        async with self._store.writing() as repositories:
            key = await _found_key(repositories, project_id, key_id)
            await change_key(repositories, key, _change(update))
            shown = await _shown(repositories, key)
        await self._keys.refresh()
        return shown

    async def revoke_key(self, project_id: str, key_id: str) -> wire.DeletedKey:
        async with self._store.writing() as repositories:
            await revoke_key(repositories, await _found_key(repositories, project_id, key_id))
        await self._keys.refresh()
        return wire.DeletedKey(id=key_id)

    # --- rate limits ---

    async def rate_limits(
        self, project_id: str, *, limit: int, after: str | None, before: str | None
    ) -> Page[wire.RateLimit]:
        """Of each model that is served, whether or not it is limited."""
        async with self._store.reading() as repositories:
            await _found(repositories, project_id)
            known = {
                each.model: each for each in await repositories.keys.rate_limits() if each.project_id == project_id
            }
        names = dict.fromkeys([*(card.id for card in self._models.cards()), *sorted(known)])
        listed = [_rate_limit(name, known.get(name)) for name in names]
        if before is not None:
            listed = listed[: _place(before, [each.id for each in listed], "before")]
        start = 0 if after is None else _place(after, [each.id for each in listed], "after") + 1
        found = listed[start : start + limit + 1]
        return page(found, [each.id for each in found], limit)

    async def set_rate_limit(self, project_id: str, limit_id: str, update: wire.RateLimitUpdate) -> wire.RateLimit:
        """A limit that is left out stays as it is."""
        name = limit_id.removeprefix(RATE_LIMIT)
        if name == limit_id or name not in {card.id for card in self._models.cards()}:
            raise NotFound(f"No rate limit with id '{limit_id[:64]}'")
        rpm, tpm = update.max_requests_per_1_minute, update.max_tokens_per_1_minute
        async with self._store.writing() as repositories:
            active(await _found(repositories, project_id))
            row = await repositories.keys.rate_limit(project_id, name)
            if row is None:
                row = rows.RateLimit(project_id=project_id, model=name)
                await repositories.keys.add(row)
            row.rpm, row.tpm = row.rpm if rpm is None else rpm, row.tpm if tpm is None else tpm
            await repositories.keys.bump()
            audit.record(repositories, project_id, "rate_limit.updated", limit_id, rpm=row.rpm, tpm=row.tpm)
        await self._keys.refresh()
        return _rate_limit(name, row)


async def _found(repositories: Repositories, project_id: str) -> rows.Project:
    project = await repositories.keys.project(project_id)
    if project is None:
        raise project_not_found(project_id)
    return project


async def _found_account(repositories: Repositories, project_id: str, account_id: str) -> rows.ServiceAccount:
    await _found(repositories, project_id)
    account = await repositories.keys.account(account_id)
    if account is None or account.project_id != project_id or account.deleted_at is not None:
        raise NotFound(f"No service account with id '{account_id[:64]}'")
    return account


async def _found_key(repositories: Repositories, project_id: str, key_id: str) -> rows.ApiKey:
    await _found(repositories, project_id)
    key = await repositories.keys.key(key_id)
    if key is None or key.project_id != project_id or key.revoked_at is not None:
        raise NotFound(f"No key with id '{key_id[:64]}'")
    return key


async def _shown(repositories: Repositories, key: rows.ApiKey) -> wire.ProjectKey:
    account = await repositories.keys.account(key.account_id)
    assert account is not None
    used = await repositories.usage.last_hours([key.id])
    return _key(key, account, used.get(key.id))


def _new_key(
    project_id: str, account: rows.ServiceAccount, new: wire.NewServiceAccount | wire.NewKey, name: str
) -> NewKey:
    expires_at = None if new.expires_in_seconds is None else time.time() + new.expires_in_seconds
    return NewKey(
        name=name,
        project_id=project_id,
        account_id=account.id,
        models=new.models,
        limits=_limits(new.limits),
        expires_at=expires_at,
    )


def _change(update: wire.KeyUpdate) -> KeyChange:
    change = cast(
        "KeyChange", dict.fromkeys(update.lift) | update.model_dump(include={"name", "models"}, exclude_unset=True)
    )
    if update.limits is not None:
        change |= cast("KeyChange", update.limits.model_dump(include=LIMITS, exclude_unset=True))
    if update.expires_in_seconds is not None:
        change["expires_at"] = time.time() + update.expires_in_seconds
    return change


def _limits(limits: wire.KeyLimits) -> KeyLimits:
    return KeyLimits(limits.rpm, limits.tpm, limits.parallel, limits.budget)


def _page(found: Sequence[Row], shown: Callable[[Row], T], limit: int, after: str | None) -> Page[T]:
    ids = [each.id for each in found]
    start = 0 if after is None else _place(after, ids, "after") + 1
    chosen = found[start : start + limit + 1]
    return page([shown(each) for each in chosen], [each.id for each in chosen], limit)


def _place(cursor: str, ids: Sequence[str], param: str) -> int:
    if cursor not in ids:
        raise InvalidRequest("'%s' is none of those that are listed", param)
    return ids.index(cursor)


def _project(row: rows.Project) -> wire.Project:
    return wire.Project(
        id=row.id,
        name=row.name,
        created_at=int(row.created_at),
        archived_at=_seconds(row.archived_at),
        status="active" if row.archived_at is None else "archived",
    )


def _account(row: rows.ServiceAccount) -> wire.ServiceAccount:
    return wire.ServiceAccount(id=row.id, name=row.name, created_at=int(row.created_at))


def _created(key: CreatedKey) -> wire.CreatedKey:
    row = key.row
    return wire.CreatedKey(
        id=row.id,
        name=row.name,
        value=key.value,
        created_at=int(row.created_at),
        expires_at=_seconds(row.expires_at),
    )


def _key(row: rows.ApiKey, account: rows.ServiceAccount, last_used: int | None) -> wire.ProjectKey:
    limits = limits_of(row)
    return wire.ProjectKey(
        id=row.id,
        name=row.name,
        redacted_value=f"sk-…{row.hint}",
        created_at=int(row.created_at),
        expires_at=_seconds(row.expires_at),
        last_used_at=last_used,
        owner=wire.AccountOwner(service_account=_account(account)),
        role="admin" if row.role == "admin" else "user",
        models=row.models,
        limits=wire.KeyLimits(rpm=limits.rpm, tpm=limits.tpm, parallel=limits.parallel, budget=limits.budget),
    )


def _rate_limit(model: str, row: rows.RateLimit | None) -> wire.RateLimit:
    return wire.RateLimit(
        id=RATE_LIMIT + model,
        model=model,
        max_requests_per_1_minute=row.rpm if row else None,
        max_tokens_per_1_minute=row.tpm if row else None,
    )


def _seconds(at: float | None) -> int | None:
    return None if at is None else int(at)
