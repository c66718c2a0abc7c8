"""`parley migrate upgrade | downgrade | status`: brings the database to the schema that this code expects."""

import asyncio
from collections.abc import Coroutine
from typing import Annotated, TypeVar

import typer

from app.common.exits import in_one_line
from database import migration

T = TypeVar("T")

app = typer.Typer(help="The database's schema.", no_args_is_help=True, rich_markup_mode=None)

Url = Annotated[
    str | None, typer.Option("--database-url", envvar="PARLEY_DATABASE__URL", help="Default: the settings'.")
]
Revision = Annotated[str, typer.Argument()]


@app.command("upgrade")
def upgrade(revision: Revision = "head", database_url: Url = None) -> None:
    """Brings the schema up to a revision."""
    _run(migration.upgrade(_url(database_url), revision))


@app.command("downgrade")
def downgrade(revision: Revision, database_url: Url = None) -> None:
    """Takes the schema back to a revision ("base": nothing is left)."""
    _run(migration.downgrade(_url(database_url), revision))


@app.command("status")
def status(database_url: Url = None) -> None:
    """Shows the current revision and the pending ones."""
    found = _run(migration.status(_url(database_url)))
    typer.echo(f"current: {found.current or '-'}\nhead:    {found.head}\npending: {', '.join(found.pending) or '-'}")


def _run(work: Coroutine[None, None, T]) -> T:
    with in_one_line():
        return asyncio.run(work)


def _url(option: str | None) -> str:
    if option is not None:
        return option
    from app.common import configuration  # here: the import takes a moment

    with in_one_line():
        return configuration.read().database.url


def main() -> None:
    app()


if __name__ == "__main__":
    main()
