"""`parley keys create | list | update | rotate | revoke`."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, cast

import typer

from app.common.exits import in_one_line
from database.admin_models import ApiKey, Project
from services.callers import KeyLimits, Role
from services.key_service import CreatedKey, KeyChange, KeyService, NewKey
from tools.moments import until
from tools.operator_database import Url, opened, run, show

COLUMNS = ("id", "name", "project", "role", "models", "rpm", "tpm", "parallel", "budget", "key", "state")

app = typer.Typer(
    help="API keys in the database.", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)

Key = Annotated[str, typer.Argument(help="Its id, or its name.")]


@app.command("create")
def create(
    name: Annotated[str, typer.Option(help="Shown in lists and in usage.")],
    project: Annotated[
        str | None, typer.Option(help="Id or name; made if there is none. Its keys share what they store.")
    ] = None,
    role: Annotated[str, typer.Option(help="user, or admin: manages keys and models.")] = "user",
    expires: Annotated[str | None, typer.Option(help="30d, 12h, or a date: 2030-12-31.")] = None,
    models: Annotated[str | None, typer.Option(help="The only ones that it may use, comma-separated.")] = None,
    rpm: Annotated[int | None, typer.Option(min=1, help="Requests a minute.")] = None,
    tpm: Annotated[int | None, typer.Option(min=1, help="Tokens a minute, of prompts and answers.")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="Requests at once.")] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="Tokens a calendar month (UTC).")] = None,
    database_url: Url = None,
) -> None:
    """Makes a key, and prints it: it is not shown again. Without --project it has a project of its own."""
    with in_one_line():
        allowed, limits = _models(models), KeyLimits(rpm, tpm, parallel, budget)
        end = None if expires is None else until(expires)
        new = NewKey(name=name, project_id="", role=_role(role), models=allowed, limits=limits, expires_at=end)
    created, owner = run(_create(database_url, new, project))
    typer.echo(created.value)
    typer.echo(f"{created.row.id} in project {owner.name} ({owner.id})", err=True)


@app.command("list")
def list_(database_url: Url = None) -> None:
    """Lists the keys, without their values."""
    show(COLUMNS, [_row(key, project) for key, project in run(_list(database_url))])


@app.command("update")
def update(
    key: Key,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    expires: Annotated[str | None, typer.Option(help="30d, 12h, a date, or never.")] = None,
    models: Annotated[str | None, typer.Option(help="The only ones that it may use, comma-separated, or all.")] = None,
    rpm: Annotated[str | None, typer.Option(help="Requests a minute, or none: no limit.")] = None,
    tpm: Annotated[str | None, typer.Option(help="Tokens a minute, or none.")] = None,
    parallel: Annotated[str | None, typer.Option(help="Requests at once, or none.")] = None,
    budget: Annotated[str | None, typer.Option(help="Tokens a calendar month (UTC), or none.")] = None,
    database_url: Url = None,
) -> None:
    """Changes what is named of a key, within seconds and for requests that come then. The rest stays as it is."""
    with in_one_line():
        limits = {"rpm": rpm, "tpm": tpm, "parallel": parallel, "budget": budget}
        change = _change(name, expires, models, {each: text for each, text in limits.items() if text is not None})
    typer.echo(f"{run(_update(database_url, key, change)).id} is changed", err=True)


@app.command("rotate")
def rotate(key: Key, database_url: Url = None) -> None:
    """Gives a key a new value, and prints it. The old one is refused within seconds."""
    created = run(_rotate(database_url, key))
    typer.echo(created.value)
    typer.echo(f"{created.row.id} has a new value", err=True)


@app.command("revoke")
def revoke(key: Key, database_url: Url = None) -> None:
    """Refuses a key for ever, within seconds. What its project has stored stays."""
    typer.echo(f"{run(_revoke(database_url, key)).id} is revoked", err=True)


async def _create(url: str | None, new: NewKey, project: str | None) -> tuple[CreatedKey, Project]:
    async with opened(url, upgrade=True) as database:
        return await KeyService(database).create_in(project, new)


async def _list(url: str | None) -> list[tuple[ApiKey, Project]]:
    async with opened(url) as database:
        return list(await KeyService(database).keys())


async def _update(url: str | None, key: str, change: KeyChange) -> ApiKey:
    async with opened(url) as database:
        return await KeyService(database).update(key, change)


async def _rotate(url: str | None, key: str) -> CreatedKey:
    async with opened(url) as database:
        return await KeyService(database).rotate(key)


async def _revoke(url: str | None, key: str) -> ApiKey:
    async with opened(url) as database:
        return await KeyService(database).revoke(key)


def _change(name: str | None, expires: str | None, models: str | None, limits: Mapping[str, str]) -> KeyChange:
    change = cast("KeyChange", {each: _limit(each, text) for each, text in limits.items()})
    if name is not None:
        change["name"] = name
    if expires is not None:
        change["expires_at"] = None if expires == "never" else until(expires)
    if models is not None:
        change["models"] = None if models == "all" else _models(models)
    if not change:
        raise ValueError("nothing is to be changed: name an option")
    return change


def _limit(name: str, text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--{name} is a number from 1 on, or none")
    return int(text)


def _role(text: str) -> Role:
    if text == "admin":
        return "admin"
    if text == "user":
        return "user"
    raise ValueError("--role is 'user' or 'admin'")


def _models(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [each.strip() for each in text.split(",") if each.strip()]
    if not names:
        raise ValueError("--models names no model: leave it out to allow all")
    return names


def _row(key: ApiKey, project: Project) -> list[str]:
    limits = (key.rpm, key.tpm, key.parallel, key.budget)
    return [
        *(key.id, key.name, project.name, key.role, ",".join(key.models or ()) or "-"),
        *("-" if limit is None else str(limit) for limit in limits),
        *(f"…{key.hint}", _state(key, project)),
    ]


def _state(key: ApiKey, project: Project) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if project.archived_at is not None:
        return "archived"
    if key.expires_at is None:
        return "active"
    day = datetime.fromtimestamp(key.expires_at, UTC).strftime("%Y-%m-%d %H:%M")
    return f"expired {day}" if key.expires_at <= time.time() else f"until {day}"
