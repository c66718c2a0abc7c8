"""A server with its own database and model, in a temporary folder that is gone afterwards."""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from database.migration import upgrade
from database.session import Database
from database.turn_repository import TurnRepository
from database.usage_repository import UsageCounts, UsageRepository
from services.models.default_models import DEFAULT_CHAT
from services.models.fetch import fetch
from tools.faults import tiny_model
from tools.faults.postgres import PostgresServer, postgres_server
from tools.faults.server import Server

Backend = Literal["sqlite", "postgresql"]


@dataclass(frozen=True, slots=True)
class Site:
    server: Server
    postgres: PostgresServer | None

    async def unfinished(self) -> int:
        """Number of running and waiting turns, read from the database."""
        database = Database(self.server.database_url)
        try:
            async with database.read() as session:
                turns = TurnRepository(session)
                return len(await turns.running()) + len(await turns.unclaimed(1000, time.time()))
        finally:
            await database.close()

    async def usage(self, owner: str) -> UsageCounts:
        """Of all hours, read from the database."""
        database = Database(self.server.database_url)
        try:
            async with database.read() as session:
                sums = await UsageRepository(session).sums(["owner"], 0, owner=[owner])
        finally:
            await database.close()
        return sum((counts for _, counts in sums), UsageCounts())


@contextmanager
def site(backend: Backend, models_dir: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="parley-reliability-")))
        postgres = stack.enter_context(postgres_server()) if backend == "postgresql" else None
        url = postgres.url("postgres") if postgres else f"sqlite:///{folder}/parley.db"
        asyncio.run(upgrade(url))
        model = tiny_model.make(folder / "tiny", fetch(DEFAULT_CHAT, models_dir))
        server = Server(folder, url, model)
        stack.callback(server.kill)
        yield Site(server, postgres)
