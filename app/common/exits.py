"""Exits with one line and code 2 for errors in the set-up; programming errors keep their traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from services.errors import ServiceError

CODE = 2


def explain(error: BaseException) -> str | None:
    """One line for the operator; None for a programming error, which its traceback describes better."""
    match error:
        case ServiceError():
            return _one_line(error.message)
        case OSError():
            return _one_line(_system_error(error))
        case ValueError():  # a setting, a database URL, a spec, a model name used twice
            return str(error).strip()
    return _database_error(error)


@contextmanager
def in_one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        leave(line)


def leave(line: str) -> NoReturn:
    print_error(line)
    sys.exit(CODE)


def print_error(line: str) -> None:
    for each in line.splitlines():
        print(f"Error: {each}", file=sys.stderr, flush=True)


def _system_error(error: OSError) -> str:
    message = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {message}" if error.filename else message


def _database_error(error: BaseException) -> str | None:
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    match error:
        case CommandError():
            return _one_line(str(error))
        case SQLAlchemyError():  # the message has the statement, in many lines
            return f"The database cannot be used: {_one_line(str(getattr(error, 'orig', None) or error))}"
    if type(error).__module__.startswith("asyncpg"):  # raised while connecting
        return f"The database cannot be used: {_one_line(str(error))}"
    return None


def _one_line(text: str) -> str:
    """The first line that is not empty; asyncpg's begin with the class."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return first.rpartition(">: ")[2] if first.startswith("<class ") else first
