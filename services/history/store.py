"""Repositories on short sessions. Database errors are translated to service errors here."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from sqlalchemy.exc import IntegrityError

from database import repositories
from database.repositories import Repositories
from database.session import Database, is_outage
from services.errors import Conflict, NotFound, Unavailable


class Store:
    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def is_shared(self) -> bool:
        """Whether processes of several machines may use it."""
        return self._database.is_shared

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Repositories]:
        with translate_errors():
            async with self._database.read() as session:
                yield repositories.of(session)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Repositories]:
        with translate_errors():
            async with self._database.write() as session:
                yield repositories.of(session)

    async def erase(self) -> bool:
        with translate_errors():
            return await self._database.erase()

    async def ping(self) -> None:
        with translate_errors():
            await self._database.ping()


@contextmanager
def translate_errors() -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        if "idempotency_keys" not in str(error.orig):
            raise
        raise Conflict("A request of this key is on its way already", param="Idempotency-Key") from error
    except Exception as error:
        if not is_outage(error):
            raise
        raise Unavailable("The conversation store is not reachable", retry_after=5) from error


def conversation_not_found(conversation: str) -> NotFound:
    return NotFound(f"No conversation with id '{conversation[:64]}'", param="conversation")


def conversation_busy() -> Conflict:
    return Conflict("Another request is writing to this conversation", param="conversation")
