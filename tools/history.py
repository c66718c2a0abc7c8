"""`parley history export | import | search | delete`."""

import asyncio
import sys
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar

import typer
from pydantic import ValidationError
from pydantic_core import from_json
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from app.common import configuration, settings
from app.common.exits import in_one_line, leave
from database.session import Database
from schemas.conversation_schema import SearchResult
from services import callers
from services.conversation_service import ConversationService
from services.history import audit
from services.history.store import Store
from services.key_service import PROJECT
from services.search_service import SearchService
from tools import archive, chatgpt
from tools.archive_schema import ArchivedConversation
from tools.operator_database import Url, opened

T = TypeVar("T")

DELETE_BATCH = 1000  # conversations per transaction

app = typer.Typer(
    help="Conversations as files.", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)

Key = Annotated[
    str | None,
    typer.Option(help="The API key, or id of a project, that owns the history; none: that of a server without keys."),
]


@app.command("export")
def export(
    output: Annotated[Path | None, typer.Argument(help="A file; default: the standard output.")] = None,
    key: Key = None,
    database_url: Url = None,
) -> None:
    """Writes a history as JSON Lines, a conversation per line."""
    url = _url(database_url)
    with in_one_line(), output.open("w", encoding="utf-8") if output else _standard_output() as file:
        count = _run(_export(url, key, file))
    typer.echo(f"{count} conversations", err=True)


@app.command("import")
def import_(source: Annotated[Path, typer.Argument(exists=True)], key: Key = None, database_url: Url = None) -> None:
    """Reads the output of `export`, or ChatGPT's conversations.json. Existing conversations stay as they are."""
    added, known = _run(_import(_url(database_url), key, read(source)))
    typer.echo(f"{added} conversations added, {known} were there already", err=True)


@app.command("search")
def search(
    query: Annotated[list[str], typer.Argument()],
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    key: Key = None,
    database_url: Url = None,
) -> None:
    """Finds items with all of the words, newest first."""
    found = _run(_search(_url(database_url), key, " ".join(query), limit))
    rows = [
        (each.conversation_id or each.answer_id or "", _who(each), " ".join(each.snippet.split())) for each in found
    ]
    console = Console()
    if not console.is_terminal:  # for programs: tab-separated lines
        typer.echo("".join("\t".join(row) + "\n" for row in rows), nl=False)
        return
    table = Table(Column("Where", no_wrap=True, overflow="fold"), "Who", "What", box=None)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


@app.command("delete")
def delete(
    conversations: Annotated[list[str] | None, typer.Argument(help="Their ids.")] = None,
    all: Annotated[bool, typer.Option("--all", help="The whole history of the key.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    key: Key = None,
    database_url: Url = None,
) -> None:
    """Deletes conversations with their items and answers."""
    if bool(conversations) == all:
        leave("name conversations, or use --all")
    if all and not yes:
        typer.confirm("Delete the whole history? This cannot be undone.", abort=True)
    count = _run(_delete(_url(database_url), key, conversations))
    typer.echo(f"{count} conversations deleted", err=True)


def _who(found: SearchResult) -> str:
    return str(found.item.get("role", found.item["type"]))


def read(source: Path) -> Iterator[ArchivedConversation]:
    """Raises Unreadable for the first conversation that cannot be stored."""
    with source.open("rb") as file:
        first = file.readline()
        file.seek(0)
        if first.lstrip().startswith(b"["):
            yield from _read_chatgpt(file.read())
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                with _located(f"line {number}"):
                    conversation = ArchivedConversation.model_validate(_json(line))
                yield conversation


def _read_chatgpt(data: bytes) -> Iterator[ArchivedConversation]:
    with _located("the file"):
        exports = _json(data)  # a list: the file begins with [
    for number, export in enumerate(exports, 1):
        with _located(f"conversation {number}"):
            conversation = chatgpt.conversation(chatgpt.Export.model_validate(export))
        yield conversation


class Unreadable(Exception):
    """The message has the place and the error."""


@contextmanager
def _located(where: str) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise Unreadable(f"{where}, {field}: {first['msg']}" if field else f"{where}: {first['msg']}") from error
    except ValueError as error:
        raise Unreadable(f"{where} is neither parley's nor ChatGPT's: {error}") from error


def _json(data: bytes) -> Any:
    """Rejects NaN and infinities: they could be stored, but not returned as JSON."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8") from error
    return from_json(data, allow_inf_nan=False)


async def _export(url: str, key: str | None, file: TextIO) -> int:
    count = 0
    async with opened(url) as database:
        owner = await owner_of(database, key)
        async for conversation in archive.export(database, owner):
            file.write(conversation.model_dump_json(by_alias=True, exclude_defaults=True) + "\n")
            count += 1
    return count


async def _import(url: str, key: str | None, conversations: Iterable[ArchivedConversation]) -> tuple[int, int]:
    async with opened(url) as database:
        owner = await owner_of(database, key)
        added = [await archive.restore(database, owner, each) for each in conversations]
    return sum(added), len(added) - sum(added)


async def _search(url: str, key: str | None, query: str, limit: int) -> list[SearchResult]:
    async with opened(url) as database:
        owner = await owner_of(database, key)
        search, found, after = SearchService(database), list[SearchResult](), None
        while True:  # pages of long items are short
            page = await search.find(owner, query, limit=limit - len(found), after=after)
            found, after = [*found, *page.data], page.last_id
            if not page.has_more or len(found) == limit:
                return found


async def _delete(url: str, key: str | None, conversations: list[str] | None) -> int:
    async with opened(url) as database:
        owner = await owner_of(database, key)
        if conversations is None:
            count = await _delete_all(Store(database), owner)
        else:
            count = len(conversations)
            for each in conversations:
                await ConversationService(database).delete(each, owner)
        while await Store(database).erase():
            pass
    return count


async def _delete_all(store: Store, owner: str) -> int:
    """In batches, so that a server on the same database waits for one batch only."""
    count = 0
    while True:
        async with store.writing() as repositories:
            num_deleted = await repositories.conversations.delete_batch(owner, limit=DELETE_BATCH)
            if num_deleted:
                audit.record(repositories, owner, "history.deleted", owner, conversations=num_deleted)
        if not num_deleted:
            return count
        count += num_deleted


@contextmanager
def _standard_output() -> Iterator[TextIO]:
    yield sys.stdout


def _run(work: Coroutine[None, None, T]) -> T:
    with in_one_line():
        try:
            return asyncio.run(work)
        except Unreadable as error:
            leave(str(error))


def _url(option: str | None) -> str:
    if option is not None:
        return option
    with in_one_line():
        return configuration.read().database.url


async def owner_of(database: Database, key: str | None) -> str:
    """`key`: of the settings or of the database, or the id of a project."""
    if key is None:
        return callers.ANYBODY
    if key.startswith(PROJECT):
        return key
    configured = settings.api_key(key)
    async with Store(database).reading() as repositories:
        stored = await repositories.keys.of_digest(configured.digest.hex())
    return stored.project_id if stored else configured.owner
