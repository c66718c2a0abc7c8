"""Connection errors that name the database: the system's own error has an address at best."""

from collections.abc import Iterator
from contextlib import contextmanager

from database.engine import parse_url


class DatabaseUnreachable(OSError):
    """Has its whole message as text, and no errno."""


@contextmanager
def naming_the_database(url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        target = parse_url(url)
        where = f"at {target.host}:{target.port or 5432}" if target.host else target.database
        raise DatabaseUnreachable(f"The database {where} cannot be reached: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason
