"""Errors in the set-up are one line; programming errors keep their traceback."""

import sqlite3

import pytest
from alembic.util import CommandError
from sqlalchemy.exc import OperationalError

from app.common import exits
from services.errors import Unavailable


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("No database of kind 'mysql'"), "No database of kind 'mysql'"),
        (FileNotFoundError(2, "No such file or directory", "/nodir/x"), "/nodir/x: No such file or directory"),
        (TimeoutError(), "TimeoutError"),
        (Unavailable("It is away\nand more"), "It is away"),
        (CommandError("nothing to migrate"), "nothing to migrate"),
        (
            OperationalError("INSERT INTO secrets", {}, sqlite3.OperationalError("database or disk is full")),
            "The database cannot be used: database or disk is full",
        ),
        (
            OperationalError("SELECT 1", {}, Exception("<class 'asyncpg.Refused'>: the role is unknown")),
            "The database cannot be used: the role is unknown",
        ),
        (RuntimeError("a fault"), None),
    ],
)
def test_errors_are_explained_in_a_line(error: Exception, line: str | None) -> None:
    assert exits.explain(error) == line


def test_exit_code_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, exits.in_one_line():
        raise OSError(28, "No space left on device", "parley.db")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "Error: parley.db: No space left on device\n"


def test_programming_errors_are_raised(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), exits.in_one_line():
        raise KeyError("fault")
    assert capsys.readouterr().err == ""
