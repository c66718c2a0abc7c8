"""`parley audit`: what was administered and deleted, when and by whom."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer

from app.common.exits import in_one_line
from database.admin_models import AuditEvent
from services.history.store import Store
from tools.moments import since as moment
from tools.operator_database import Url, opened, run, show

COLUMNS = ("time", "actor", "action", "target", "owner", "details")

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def audit(
    since: Annotated[str | None, typer.Option(help="30d, 12h, or a date: 2030-12-31.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest of them.")] = 1000,
    database_url: Url = None,
) -> None:
    """Lists what was administered and deleted, oldest first."""
    with in_one_line():
        start = moment(since) if since else 0.0
    show(COLUMNS, [_row(each) for each in run(_events(database_url, start, limit))])


async def _events(url: str | None, since: float, limit: int) -> Sequence[AuditEvent]:
    async with opened(url) as database, Store(database).reading() as repositories:
        return await repositories.audit.events(since=since, limit=limit)


def _row(event: AuditEvent) -> list[str]:
    at = datetime.fromtimestamp(event.at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    details = json.dumps(event.details, ensure_ascii=False) if event.details else ""
    return [at, event.actor, event.action, event.target, event.owner, details]
