"""A value of a JSON object as text, for any key: SQLite's JSON paths would interpret some characters of the key."""

from typing import Any

from sqlalchemy import ColumnElement, Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class json_text(FunctionElement[str]):
    type = Text()
    inherit_cache = True

    def __init__(self, column: ColumnElement[Any] | Any, key: str) -> None:
        super().__init__(column, key)


@compiles(json_text, "postgresql")
def _postgresql(element: json_text, compiler: SQLCompiler, **options: Any) -> str:
    column, key = (compiler.process(each, **options) for each in element.clauses)
    return f"({column} ->> CAST({key} AS TEXT))"


@compiles(json_text, "sqlite")
def _sqlite(element: json_text, compiler: SQLCompiler, **options: Any) -> str:
    column, key = (compiler.process(each, **options) for each in element.clauses)
    return f"(SELECT CAST(value AS TEXT) FROM json_each({column}) WHERE key = {key})"
