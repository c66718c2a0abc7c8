"""The server's secret, by which it seals what clients keep for it."""

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import suppress

from database.session import Database
from services.chat.items import Item
from services.chat.request.opened import Opened, is_sealed
from services.chat.request.refusals import ReportIgnored, report_nothing
from services.chat.sealed import Seal
from services.errors import Unavailable
from services.history.store import Store

NAME = "seal"


class SecretService:
    """From the settings, or, where they have none, from the database: made once, shared by all replicas."""

    def __init__(self, database: Database, secret: str | None = None) -> None:
        self._store = Store(database)
        self._secret = secret
        self._reading = asyncio.Lock()

    async def start(self) -> None:
        """Reads it while the database is there: requests that store nothing go on without one."""
        with suppress(Unavailable):
            await self._known()

    async def seal(self, owner: str) -> Seal:
        """Raises Unavailable where the secret is not known yet and the database is away."""
        return Seal((await self._known()).encode(), owner)

    async def opened(
        self, items: Sequence[Item], owner: str, report_ignored: ReportIgnored = report_nothing
    ) -> list[Item]:
        """`report_ignored` gets the names of those that could not be opened, as a request has them."""
        if not any(map(is_sealed, items)):
            return list(items)
        opened = Opened(items, await self.seal(owner))
        report_ignored(opened.unread)
        return opened.items

    async def _known(self) -> str:
        async with self._reading:
            if self._secret is None:
                self._secret = await self._stored() or await self._made()
        return self._secret

    async def _stored(self) -> str | None:
        async with self._store.reading() as repositories:
            return await repositories.secrets.get(NAME)

    async def _made(self) -> str:
        async with self._store.writing() as repositories:
            await repositories.secrets.add(NAME, secrets.token_urlsafe(32))
        found = await self._stored()  # of whoever was first
        assert found is not None
        return found
