"""Administration of projects under /v1/organization/projects, for admin keys."""

from typing import Annotated, Literal

from fastapi import Depends, Query, Response

from app.common.auth import require_admin
from app.common.dependencies import Projects, UnknownKeys
from app.common.json_body import JsonRoute
from app.common.router import TwinRouter
from schemas import admin_schema as wire
from schemas.ignored_keys import ignored_keys
from schemas.page_schema import Page

router = TwinRouter(tags=["administration"], route_class=JsonRoute, dependencies=[Depends(require_admin)])

PROJECTS = "/organization/projects"
PROJECT = PROJECTS + "/{project_id}"
ACCOUNTS, KEYS, LIMITS = (f"{PROJECT}/{name}" for name in ("service_accounts", "api_keys", "rate_limits"))
ACCOUNT, KEY = ACCOUNTS + "/{account_id}", KEYS + "/{key_id}"

Limit = Annotated[int, Query(ge=1, le=100)]
Cursor = Annotated[str | None, Query(max_length=300)]


@router.get(PROJECTS)
async def list_projects(
    projects: Projects, limit: Limit = 20, after: Cursor = None, include_archived: bool = False
) -> Page[wire.Project]:
    return await projects.page(limit=limit, after=after, include_archived=include_archived)


@router.post(PROJECTS)
async def create_project(
    body: wire.ProjectName, response: Response, projects: Projects, unknown: UnknownKeys
) -> wire.Project:
    response.headers.update(unknown.header(ignored_keys(body)))
    return await projects.create(body.name)


@router.get(PROJECT)
async def retrieve_project(project_id: str, projects: Projects) -> wire.Project:
    return await projects.get(project_id)


@router.post(PROJECT)
async def update_project(
    project_id: str, body: wire.ProjectName, response: Response, projects: Projects, unknown: UnknownKeys
) -> wire.Project:
    response.headers.update(unknown.header(ignored_keys(body)))
    return await projects.rename(project_id, body.name)


@router.post(PROJECT + "/archive")
async def archive_project(project_id: str, projects: Projects) -> wire.Project:
    return await projects.archive(project_id)


@router.get(ACCOUNTS)
async def list_service_accounts(
    project_id: str, projects: Projects, limit: Limit = 20, after: Cursor = None
) -> Page[wire.ServiceAccount]:
    return await projects.accounts(project_id, limit=limit, after=after)


@router.post(ACCOUNTS)
async def create_service_account(
    project_id: str, body: wire.NewServiceAccount, response: Response, projects: Projects, unknown: UnknownKeys
) -> wire.CreatedServiceAccount:
    """Makes an account with a key, which only this answer shows."""
    response.headers.update(unknown.header(ignored_keys(body)))
    return await projects.create_account(project_id, body)


@router.get(ACCOUNT)
async def retrieve_service_account(project_id: str, account_id: str, projects: Projects) -> wire.ServiceAccount:
    return await projects.account(project_id, account_id)


@router.post(ACCOUNT)
async def update_service_account(
    project_id: str,
    account_id: str,
    body: wire.ServiceAccountUpdate,
    response: Response,
    projects: Projects,
    unknown: UnknownKeys,
) -> wire.ServiceAccount:
    response.headers.update(unknown.header(ignored_keys(body)))
    return await projects.rename_account(project_id, account_id, body.name)


@router.delete(ACCOUNT)
async def delete_service_account(project_id: str, account_id: str, projects: Projects) -> wire.DeletedServiceAccount:
    """Revokes its keys."""
    return await projects.delete_account(project_id, account_id)


@router.post(ACCOUNT + "/api_keys")
async def create_key(
    project_id: str,
    account_id: str,
    body: wire.NewKey,
    response: Response,
    projects: Projects,
    unknown: UnknownKeys,
) -> wire.CreatedKey:
    response.headers.update(unknown.header(ignored_keys(body)))
    return await projects.create_key(project_id, account_id, body)


@router.get(KEYS)
async def list_keys(
    project_id: str,
    projects: Projects,
    limit: Limit = 20,
    after: Cursor = None,
    owner_project_access: Literal["active", "inactive", "any"] = "active",
) -> Page[wire.ProjectKey]:
    return await projects.keys(project_id, limit=limit, after=after, access=owner_project_access)


@router.get(KEY)
async def retrieve_key(project_id: str, key_id: str, projects: Projects) -> wire.ProjectKey:
    return await projects.key(project_id, key_id)


@router.post(KEY)
async def update_key(
    project_id: str, key_id: str, body: wire.KeyUpdate, response: Response, projects: Projects, unknown: UnknownKeys
) -> wire.ProjectKey:
    response.headers.update(unknown.header(ignored_keys(body)))
    return await projects.update_key(project_id, key_id, body)


@router.delete(KEY)
async def revoke_key(project_id: str, key_id: str, projects: Projects) -> wire.DeletedKey:
    return await projects.revoke_key(project_id, key_id)


@router.get(LIMITS)
async def list_rate_limits(
    project_id: str, projects: Projects, limit: Limit = 100, after: Cursor = None, before: Cursor = None
) -> Page[wire.RateLimit]:
    return await projects.rate_limits(project_id, limit=limit, after=after, before=before)


@router.post(LIMITS + "/{rate_limit_id:path}")  # it has the model's name, which may have slashes
async def update_rate_limit(
    project_id: str,
    rate_limit_id: str,
    body: wire.RateLimitUpdate,
    response: Response,
    projects: Projects,
    unknown: UnknownKeys,
) -> wire.RateLimit:
    response.headers.update(unknown.header(ignored_keys(body)))
    return await projects.set_rate_limit(project_id, rate_limit_id, body)
