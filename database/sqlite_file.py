"""Checks that an SQLite file is ours before anything is written to it."""

import sqlite3
from pathlib import Path
from urllib.parse import quote

from database.engine import parse_url

VERSION = "alembic_version"
OWN_TABLES = {"turns", "conversations"}


class ForeignDatabase(ValueError):
    """The file is not a database, or belongs to another program."""


def check(url: str) -> None:
    """Raises ForeignDatabase; accepts URLs of other databases."""
    target = parse_url(url)
    path = Path(target.database or "")
    if target.get_backend_name() != "sqlite" or not path.exists():
        return
    if path.is_dir():
        raise ForeignDatabase(f"{path} is a folder, and not an SQLite file")
    tables = _tables(path)
    if tables - {VERSION} and not (VERSION in tables and tables & OWN_TABLES):
        raise ForeignDatabase(f"{path} is the database of another program, whose tables are in it: name another file")


def beside(url: str, what: str) -> Path:
    """A path next to the database's file and named after it, or in the working directory for other databases."""
    target = parse_url(url)
    file = Path(target.database if target.get_backend_name() == "sqlite" and target.database else "parley")
    return file.with_name(f"{file.stem}-{what}")


def _tables(path: Path) -> set[str]:
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
        try:
            rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_NOTADB:
            raise ForeignDatabase(f"{path} is no SQLite database") from None
        return set()  # locked or unreadable: opening it next reports that
    return {name for (name,) in rows if not name.startswith("sqlite_")}
