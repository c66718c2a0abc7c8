"""The README names every setting and every route."""

import re
from collections.abc import Iterator
from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel

from app.common.settings import Settings
from tests.apps import Site

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
GROUPS_WITH_ONE_ROW = ("EMBEDDING",)  # the same fields as another's


def variables(settings: type[BaseModel], group: str = "PARLEY_") -> Iterator[str]:
    for name, field in settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and name.upper() not in GROUPS_WITH_ONE_ROW:
            yield from variables(kind, f"{group}{name.upper()}__")
        else:
            yield f"{group}{name.upper()}"


def rows() -> set[str]:
    """`PARLEY_MODEL__TTL_S`, `__PINNED` in one row are two."""
    found = set()
    for cell in re.findall(r"^\| (`PARLEY_.*?) \|", README, re.MULTILINE):
        first, *others = re.findall(r"`([A-Z_]+)…?`", cell.replace("__…", ""))
        found |= {first, *(first.rpartition("__")[0] + other for other in others)}
    return found


def test_settings_are_those_that_there_are() -> None:
    known = set(variables(Settings)) - {"PARLEY_MODEL__KIND"}  # which nobody has to set
    assert rows() == known


def paths(app: FastAPI) -> set[str]:
    return {re.sub(r"{.*", "", path).removeprefix("/v1").rstrip("/") for path in app.openapi()["paths"]}


def test_routes_are_all_named(site: Site) -> None:
    table = README.partition("## Routes")[2].partition("## Settings")[0]
    shortened = re.compile("/api/.*|.*/input_tokens")  # rows with an ellipsis
    missing = [path for path in paths(site.app) if path not in table and not shortened.fullmatch(path)]
    assert missing == []
