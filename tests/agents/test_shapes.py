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

SHAPES = [json.loads(line) for line in (Path(__file__).parent / "shapes.jsonl").read_text().splitlines()]

# Refusals that are right, each with its reason.
REFUSED = {
    "claude-code-image.messages.2": "a tool has returned an image, and the model takes text only",
    "claude-code-image.messages.3": "a tool has returned an image, and the model takes text only",
}
# What is not answered yet: a name is taken out once its request is answered.
NOT_YET: dict[str, str] = {}


@pytest.fixture(scope="module")
def client(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    database = tmp_path_factory.mktemp("agents") / "parley.db"
    with apps.serving(apps.engine(apps.THINKS), sqlite_template, database) as client:
        yield client


@pytest.mark.parametrize("shape", [pytest.param(each, id=each["name"]) for each in SHAPES])
def test_is_answered(client: TestClient, shape: dict[str, Any], request: pytest.FixtureRequest) -> None:
    if reason := NOT_YET.get(shape["name"]):
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    answer = client.post(shape["request"].removeprefix("POST "), json=shape["body"])
    assert answer.status_code == (400 if shape["name"] in REFUSED else 200), answer.text
    assert '"error":{' not in answer.text or shape["name"] in REFUSED


def test_each_name_is_a_shapes() -> None:
    assert {*REFUSED, *NOT_YET} <= {each["name"] for each in SHAPES}
    assert len(SHAPES) == 141
