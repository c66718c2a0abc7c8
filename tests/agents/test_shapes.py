"""What real agent programs send is answered: recorded requests, with each text as "…", posted to the whole app.

`shapes.jsonl` has one request a line, as the programs sent them in November 2026.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.agents import apps
from tests.fakes import FakeEngine
from tests.pictures import FakeReader

SHAPES = [json.loads(line) for line in (Path(__file__).parent / "shapes.jsonl").read_text().splitlines()]

# Refusals that are right, each with its reason: none, of a model that sees.
REFUSED: dict[str, str] = {}
# Those of a model that takes text only.
WITH_IMAGES = {"claude-code-image.messages.2", "claude-code-image.messages.3"}


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    engine = apps.engine(apps.THINKS)
    engine.images = FakeReader()
    return engine


@pytest.fixture(scope="module")
def client(engine: FakeEngine, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with apps.serving(engine, sqlite_template, tmp_path_factory.mktemp("agents") / "parley.db") as client:
        yield client


@pytest.mark.parametrize("shape", [pytest.param(each, id=each["name"]) for each in SHAPES])
def test_is_answered(client: TestClient, shape: dict[str, Any]) -> None:
    answer = client.post(shape["request"].removeprefix("POST "), json=shape["body"])
    assert answer.status_code == (400 if shape["name"] in REFUSED else 200), answer.text
    assert '"error":{' not in answer.text or shape["name"] in REFUSED


@pytest.mark.parametrize("name", sorted(WITH_IMAGES))
def test_model_that_takes_text_only_says_so(
    client: TestClient, engine: FakeEngine, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "images", None)
    answer = client.post("/v1/messages", json=next(each["body"] for each in SHAPES if each["name"] == name))
    assert answer.status_code == 400
    assert "this model takes text only" in answer.json()["error"]["message"]


def test_each_name_is_a_shapes() -> None:
    assert {*REFUSED, *WITH_IMAGES} <= {each["name"] for each in SHAPES}
    assert len(SHAPES) == 143
