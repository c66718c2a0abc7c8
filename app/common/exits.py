"""What is wrong with a set-up, in one line and with exit code 2; faults of ours keep their traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from services.errors import ServiceError

CODE = 2


def explain(error: BaseException) -> str | None:
    """A line for whoever set this up; None: it is a fault, which its traceback describes better."""
    match error:
        case ServiceError():
            return _one_line(error.message)
        case OSError():
            return _one_line(_of_the_system(error))
        case ValueError():  # a setting's value, a database's URL, a spec, a name that two models have
            return str(error).strip()
    return _of_a_database(error)


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


def _of_the_system(error: OSError) -> str:
    said = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {said}" if error.filename else said


def _of_a_database(error: BaseException) -> str | None:
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    match error:
        case CommandError():
            return _one_line(str(error))
        case SQLAlchemyError():  # with the statement it is many lines
            return f"The database cannot be used: {_one_line(str(getattr(error, 'orig', None) or error))}"
    if type(error).__module__.startswith("asyncpg"):  # refused while connecting
        return f"The database cannot be used: {_one_line(str(error))}"
    return None


def _one_line(text: str) -> str:
    """The first that says something; a driver's begins with its class."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return first.rpartition(">: ")[2] if first.startswith("<class ") else first
