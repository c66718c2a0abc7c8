"""Databases for tests: SQLite files, and a PostgreSQL server for the session."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from database.migration import upgrade
from database.session import Database
from tests.postgres_copies import PostgresCopies, copy, drop
from tools.faults.postgres import PostgresServer, free_port, postgres_server

__all__ = ["PostgresServer", "free_port"]

NewDatabase = Callable[..., Any]  # of a class of its own, with options


TESTS = Path(__file__).parent
ABOVE_THE_DATABASE = (TESTS / "test_controller", TESTS / "test_services")


@pytest.hookimpl(tryfirst=True)  # before `-m` is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """PostgreSQL's turn of what is tested above the database is for `make test-all`, but of what is `both_databases`:
    where locks, claims, several processes or a statement in a dialect of its own are tested."""
    for item in items:
        if _repeats_on_postgresql(item) and not item.get_closest_marker("both_databases"):
            item.add_marker("extended")


def _repeats_on_postgresql(item: pytest.Item) -> bool:
    call = getattr(item, "callspec", None)
    if call is None or call.params.get("backend") != "postgresql":
        return False
    is_its_only = any("backend" in mark.args[0] for mark in item.iter_markers("parametrize"))
    return not is_its_only and any(item.path.is_relative_to(each) for each in ABOVE_THE_DATABASE)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with ExitStack() as stack:
        try:
            # power cuts are not tested, so nothing waits for the disk
            server = stack.enter_context(postgres_server(sync=False))
        except FileNotFoundError as missing:
            pytest.skip(str(missing))
        yield server


@pytest.fixture(scope="session")
def postgresql_template(postgres: PostgresServer) -> str:
    """Name of a migrated, empty database to copy."""

    async def prepare() -> None:
        await postgres.execute("CREATE DATABASE parley_template")
        await upgrade(postgres.url("parley_template"))

    asyncio.run(prepare())
    return "parley_template"


@pytest.fixture(scope="session")
def postgres_copies(postgres: PostgresServer, postgresql_template: str) -> PostgresCopies:
    return PostgresCopies(postgres, postgresql_template)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "template.db"
    asyncio.run(upgrade(f"sqlite:///{path}"))
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def template(backend: str, request: pytest.FixtureRequest) -> Path | PostgresCopies:
    """Of migrated databases."""
    name = {"sqlite": "sqlite_template", "postgresql": "postgres_copies"}[backend]
    source: Path | PostgresCopies = request.getfixturevalue(name)
    return source


@pytest.fixture
async def databases() -> AsyncIterator[AsyncExitStack]:
    """Databases that this test has copied. Dropped last: what serves from one of them depends on this fixture, too."""
    async with AsyncExitStack() as databases:
        yield databases


@pytest.fixture
async def empty_url(backend: str, databases: AsyncExitStack, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without any table."""
    if backend == "sqlite":
        return f"sqlite:///{tmp_path}/parley.db"
    return await databases.enter_async_context(_empty(request.getfixturevalue("postgres")))


@pytest.fixture
async def database_url(template: Path | PostgresCopies, databases: AsyncExitStack, tmp_path: Path) -> str:
    """A migrated database without any row."""
    if isinstance(template, PostgresCopies):
        return await databases.enter_async_context(template.one())  # noqa: ASYNC240  # no path
    shutil.copy(template, tmp_path / "parley.db")
    return f"sqlite:///{tmp_path}/parley.db"


@pytest.fixture
async def new_database(database_url: str) -> AsyncIterator[NewDatabase]:
    """Further processes' views of it; they are closed however the test ends."""
    async with AsyncExitStack() as opened:

        def new_database(kind: type[Database] = Database, **options: Any) -> Database:
            database = kind(database_url, **options)
            opened.push_async_callback(database.close)
            return database

        yield new_database


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


async def waited_for(session: AsyncSession, by: int) -> None:
    """Waits until `by` others wait for locks of this transaction; SQLite has one writer anyway."""
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    is_sqlite = (await session.connection()).dialect.name == "sqlite"
    while not is_sqlite and await session.scalar(waiting) < by:
        pass


@asynccontextmanager
async def _empty(server: PostgresServer) -> AsyncIterator[str]:
    name = await copy(server, "template1")
    yield server.url(name)
    await drop(server, name)
