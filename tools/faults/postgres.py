"""A temporary PostgreSQL server in a folder, on a free port."""

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from database.local_server import program, server_user


@dataclass(frozen=True, slots=True)
class PostgresServer:
    pg_ctl: Path
    folder: Path
    port: int
    user: str | None  # of the process; None: ours
    sync: bool  # waits for the disk

    def url(self, database: str) -> str:
        return f"postgresql://parley@127.0.0.1:{self.port}/{database}"

    async def execute(self, statement: str, database: str = "postgres") -> None:
        connection = await asyncpg.connect(self.url(database))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -c unix_socket_directories=''"
        self._control("start", f"--options={options}{'' if self.sync else ' -F'}")

    def stop(self) -> None:
        """Stops at once, like a crash."""
        self._control("stop", "--mode=immediate")

    def _control(self, *arguments: str) -> None:
        command = [str(self.pg_ctl), f"--pgdata={self.folder}/data", f"--log={self.folder}/log", "--wait", *arguments]
        subprocess.run(command, user=self.user, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def postgres_server(*, sync: bool = True) -> Iterator[PostgresServer]:
    """Raises FileNotFoundError if PostgreSQL's server programs are not installed."""
    pg_ctl = program("pg_ctl")
    user = server_user()
    with tempfile.TemporaryDirectory(prefix="parley-postgres-") as folder:
        if user:
            shutil.chown(folder, user)
        server = PostgresServer(pg_ctl, Path(folder), free_port(), user, sync)
        server._control("init", "--options=--auth=trust --username=parley --encoding=UTF8 --no-sync")
        server.start()
        try:
            yield server
        finally:
            server.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
