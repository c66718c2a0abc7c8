"""Databases for tests: SQLite files, and a real PostgreSQL that runs as long as the tests do."""

import asyncio
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from database.session import Database
from tools.data_migration import upgrade

DEBIAN = "/usr/lib/postgresql"  # Debian keeps the server's programs off the PATH


@dataclass(frozen=True, slots=True)
class PostgresServer:
    port: int

    def url(self, database: str) -> str:
        return f"postgresql://parley@127.0.0.1:{self.port}/{database}"

    async def execute(self, statement: str, database: str = "postgres") -> None:
        connection = await asyncpg.connect(self.url(database))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    pg_ctl = _program("pg_ctl")
    if pg_ctl is None:
        pytest.skip("PostgreSQL's server programs (initdb, pg_ctl) are not installed")
    user = _server_user()
    with tempfile.TemporaryDirectory(prefix="parley-postgres-") as folder:
        if user:
            shutil.chown(folder, user)
        port = free_port()
        log = Path(folder, "log")

        def control(*arguments: str) -> None:
            command = [str(pg_ctl), f"--pgdata={folder}/data", f"--log={log}", "--wait", *arguments]
            subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)

        # what a power cut would cost is not tested, so nothing waits for the disk
        control("init", "--options=--auth=trust --username=parley --encoding=UTF8 --no-sync")
        control("start", f"--options=-F -p {port} -h 127.0.0.1 -c unix_socket_directories=''")
        try:
            yield PostgresServer(port)
        finally:
            control("stop", "--mode=immediate")


@pytest.fixture(scope="session")
def postgresql_template(postgres: PostgresServer) -> str:
    """The name of a migrated, empty database to copy."""

    async def prepare() -> None:
        await postgres.execute("CREATE DATABASE parley_template")
        await upgrade(postgres.url("parley_template"))

    asyncio.run(prepare())
    return "parley_template"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "template.db"
    asyncio.run(upgrade(f"sqlite:///{path}"))
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def template(backend: str, request: pytest.FixtureRequest) -> str | Path:
    source: str | Path = request.getfixturevalue(f"{backend}_template")
    return source


@pytest.fixture
async def empty_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """A database without any table."""
    if backend == "sqlite":
        yield f"sqlite:///{tmp_path}/parley.db"
        return
    async for url in _copy(request.getfixturevalue("postgres"), "template1"):
        yield url


@pytest.fixture
async def database_url(template: str | Path, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """A migrated database without any row."""
    if isinstance(template, Path):
        shutil.copy(template, tmp_path / "parley.db")
        yield f"sqlite:///{tmp_path}/parley.db"
        return
    async for url in _copy(request.getfixturevalue("postgres"), template):
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


async def _copy(server: PostgresServer, template: str) -> AsyncIterator[str]:
    name = f"parley_{uuid4().hex}"
    await server.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    yield server.url(name)
    await server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _program(name: str) -> Path | None:
    if found := shutil.which(name):
        return Path(found).resolve()  # it looks for its siblings next to itself
    return max(Path(DEBIAN).glob(f"*/bin/{name}"), default=None)


def _server_user() -> str | None:
    """PostgreSQL refuses to run as root; None: we are not root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
