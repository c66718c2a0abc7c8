"""The server's secret, from which the keys are derived that encrypt data kept by clients."""

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
    """The secret of the settings, or else a random one stored in the database and shared by all replicas."""

    def __init__(self, database: Database, secret: str | None = None) -> None:
        self._store = Store(database)
        self._secret = secret
        self._reading = asyncio.Lock()

    async def start(self) -> None:
        """Reads the secret while the database is reachable: later, requests that store nothing work without it."""
        with suppress(Unavailable):
            await self._get()

    async def seal(self, owner: str) -> Seal:
        """Raises Unavailable if the secret is not read yet and the database is unreachable."""
        return Seal((await self._get()).encode(), owner)

    async def opened(
        self, items: Sequence[Item], owner: str, report_ignored: ReportIgnored = report_nothing
    ) -> list[Item]:
        """`report_ignored` gets the parameter names of items that could not be decrypted."""
        if not any(map(is_sealed, items)):
            return list(items)
        opened = Opened(items, await self.seal(owner))
        report_ignored(opened.unread)
        return opened.items

    async def _get(self) -> str:
        async with self._reading:
            if self._secret is None:
                self._secret = await self._stored() or await self._create()
        return self._secret

    async def _stored(self) -> str | None:
        async with self._store.reading() as repositories:
            return await repositories.secrets.get(NAME)

    async def _create(self) -> str:
        async with self._store.writing() as repositories:
            await repositories.secrets.add(NAME, secrets.token_urlsafe(32))
        found = await self._stored()  # the one of the first process
        assert found is not None
        return found
