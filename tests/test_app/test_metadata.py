"""Numbers in metadata are returned unchanged, or rejected by name."""

import json
from typing import Any

import pytest

from tests.apps import Site, post, refusal

MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "store": True},
    "/v1/chat/completions/input_tokens": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/conversations": {},
    "/v1/batches": {"input_file_id": "file-1", "endpoint": "/v1/responses", "completion_window": "24h"},
}
BEYOND = [2**64, -(2**63) - 1, 2**70, -(2**200), 10**300]


@pytest.fixture
async def updates(site: Site) -> list[str]:
    """Updates of stored objects."""
    completion = (await post(site, "/v1/chat/completions", messages=MESSAGES, store=True))["id"]
    return [f"/v1/chat/completions/{completion}", f"/v1/conversations/{(await post(site, '/v1/conversations'))['id']}"]


def taking_metadata(site: Site) -> set[str]:
    document = site.app.openapi()
    schemas, found = document["components"]["schemas"], set()
    for path, methods in document["paths"].items():
        body = methods.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        name = body.get("schema", {}).get("$ref", "").rpartition("/")[2]
        if "metadata" in schemas.get(name, {}).get("properties", {}):
            found.add(path)
    return found


def test_all_routes_with_metadata_are_tested(site: Site) -> None:
    known = {"/v1/chat/completions/{completion_id}", "/v1/conversations/{conversation_id}", "/v1/messages"}
    assert taking_metadata(site) == {*BODIES, *known}


@pytest.mark.parametrize("number", BEYOND, ids=lambda number: f"{number:.0e}")
async def test_integers_beyond_64_bits_are_rejected_by_name(site: Site, updates: list[str], number: int) -> None:
    for path in [*BODIES, *updates]:
        for name in ("n", "a.b"):
            body = BODIES.get(path, {})
            assert await refusal(site, path, **body, metadata={name: number}) == f"metadata.{name}", path
    body = {"model": "default", "max_tokens": 3, "messages": MESSAGES, "metadata": {"user_id": number}}
    answer = await site.client.post("/v1/messages", json=body)
    assert answer.status_code == 400
    assert "metadata.user_id" in answer.json()["error"]["message"]


@pytest.mark.parametrize("number", [0, -1, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1, 1.5, -0.25, 1e15])
async def test_other_numbers_are_returned_unchanged(site: Site, updates: list[str], number: float) -> None:
    for path in ["/v1/chat/completions", "/v1/conversations", *updates]:
        answer = await site.client.post(path, json={**BODIES.get(path, {}), "metadata": {"n": number}})
        assert json.loads(answer.text)["metadata"] == {"n": number}, path
