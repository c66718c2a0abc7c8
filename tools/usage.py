"""`parley usage`: what was asked for and computed, by key, project, model or hour."""

import csv
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

import typer

from app.common.exits import in_one_line
from database.usage_repository import Dimension, UsageCounts
from services.key_service import KeyService
from services.usage_service import UsageService
from tools.moments import since as moment
from tools.operator_database import Url, opened, run, show

DIMENSIONS: dict[str, Dimension] = {"key": "key_id", "project": "owner", "model": "model", "hour": "hour"}
COUNTS = ("requests", "errors", "prompt", "cached", "completion", "reasoning", "seconds")

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def usage(
    by: Annotated[Literal["key", "project", "model", "hour"], typer.Option(help="What to add up by.")] = "key",
    since: Annotated[str, typer.Option(help="30d, 12h, or a date: 2030-12-31. By the hour.")] = "30d",
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
    database_url: Url = None,
) -> None:
    """Shows requests, tokens and seconds of computing."""
    with in_one_line():
        start = moment(since)
    columns = (by, "name", *COUNTS)
    rows = run(_rows(database_url, DIMENSIONS[by], start))
    if as_csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows([columns, *rows])
    else:
        show(columns, rows)


async def _rows(url: str | None, dimension: Dimension, since: float) -> list[list[str]]:
    async with opened(url) as database:
        sums = await UsageService(database).by(dimension, since)
        keys = await KeyService(database).keys()
    names = {key.id: key.name for key, _ in keys} | {project.id: project.name for _, project in keys}
    shown = _hour if dimension == "hour" else str
    return [[shown(value), names.get(value, ""), *_counts(counts)] for value, counts in sums]


def _hour(start: str) -> str:
    return datetime.fromtimestamp(int(start), UTC).strftime("%Y-%m-%dT%H:%MZ")


def _counts(counts: UsageCounts) -> Sequence[str]:
    tokens = (counts.prompt_tokens, counts.cached_tokens, counts.completion_tokens, counts.reasoning_tokens)
    return [*map(str, (counts.requests, counts.errors, *tokens)), f"{counts.seconds:.1f}"]
