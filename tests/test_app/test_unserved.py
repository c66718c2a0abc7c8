"""Every resource of the official client is served or listed as unserved, and its 404 says so."""

import re
from pathlib import Path

import openai
import pytest

from app.common import unserved
from tests.apps import Site
from tools.compatibility import CALLED_BY

CALLS = re.compile(
    r'self\._(?:get|post|delete|get_api_list)\(\s*(?:path_template\(\s*)?"(/[^"?]+)',
)
RESOURCES = Path(openai.__file__).parent / "resources"


def client_paths() -> set[str]:
    return {path for file in RESOURCES.rglob("*.py") for path in CALLS.findall(file.read_text())}


def first_part(path: str) -> str:
    return path.removeprefix("/v1").split("/")[1]


def test_every_resource_of_the_client_is_served_or_listed() -> None:
    paths = client_paths()
    assert len(paths) > 200
    served = {first_part(route.split()[1]) for route in CALLED_BY}
    assert {first_part(path) for path in paths} == served | set(unserved.OPENAI)
    assert served.isdisjoint(unserved.OPENAI)


@pytest.mark.parametrize(
    ("path", "about"),
    [
        ("/v1/audio/speech", "speech"),
        ("/fine_tuning/jobs", "training"),
        ("/v1/vector_stores/vs_1/files", "/v1/embeddings"),
    ],
)
async def test_error_names_the_resource(site: Site, path: str, about: str) -> None:
    answer = await site.client.post(path, json={})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "unsupported_endpoint")
    assert "is not served here" in error["message"]
    assert about in error["message"]


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/audiobooks", "/static/images", "/v1", "/x/v1/batches"])
async def test_other_paths_are_not_found(site: Site, path: str) -> None:
    answer = await site.client.get(path)
    assert answer.status_code == 404
    assert "is not served here" not in answer.text
