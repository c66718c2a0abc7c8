"""What the operator's commands share: the database's address, and results as a table or as tab-separated lines."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from getpass import getuser
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.common import configuration
from app.common.exits import in_one_line
from database import migration, sqlite_file
from database.connect_error import naming_the_database
from database.session import Database
from services.callers import ANYBODY, Caller, acting_as

T = TypeVar("T")

Url = Annotated[
    str | None, typer.Option("--database-url", envvar="PARLEY_DATABASE__URL", help="Default: the settings'.")
]


@asynccontextmanager
async def opened(url: str | None, *, upgrade: bool = False) -> AsyncIterator[Database]:
    """`upgrade`: makes the database, too, where there is none yet."""
    address = _address(url)
    if upgrade:
        await migration.upgrade(address)
    sqlite_file.check(address)
    database = Database(address)
    try:
        with naming_the_database(address), acting_as(Caller(ANYBODY, f"cli:{getuser()}")):
            yield database
    finally:
        await database.close()


def run(work: Coroutine[None, None, T]) -> T:
    with in_one_line():
        return asyncio.run(work)


def show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    console = Console()
    if not console.is_terminal:  # for programs
        typer.echo("".join("\t".join(row) + "\n" for row in (columns, *rows)), nl=False)
        return
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def _address(url: str | None) -> str:
    return configuration.read().database.url if url is None else url
