"""The README names every route, and no setting that does not exist."""

import re
from pathlib import Path

from fastapi import FastAPI

from tests.apps import Site
from tools import settings_page

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
SETTINGS = {each.name for section in settings_page.sections() for each in section.settings}


def test_settings_it_names_exist() -> None:
    named = set(re.findall(r"PARLEY_[A-Z_]+", README))
    assert named
    assert named <= SETTINGS


def paths(app: FastAPI) -> set[str]:
    return {re.sub(r"{.*", "", path).removeprefix("/v1").rstrip("/") for path in app.openapi()["paths"]}


def test_all_routes_are_named(site: Site) -> None:
    table = README.partition("## Routes")[2].partition("## Settings")[0]
    shortened = re.compile("/api/.*|.*/input_tokens")  # rows with an ellipsis
    missing = [path for path in paths(site.app) if path not in table and not shortened.fullmatch(path)]
    assert missing == []
