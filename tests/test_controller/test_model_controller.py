"""GET /v1/models."""

from typing import cast

import pytest

from services.engine.base import ImageReader
from tests.apps import MODEL, NewSite, Site
from tests.fakes import FakeEngine

HUB = {"name": "owner/model", "kind": "chat"}


@pytest.fixture
async def many(new_site: NewSite) -> Site:
    return await new_site(models=[HUB], model={"name": MODEL, "preload": False, "aliases": {"gpt-4o": "default"}})


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_all_are_listed(many: Site, prefix: str) -> None:
    listed = (await many.client.get(f"{prefix}/models")).json()
    assert listed["object"] == "list"
    assert [each["id"] for each in listed["data"]] == [MODEL, "owner/model", "fake-embedding"]
    for each in listed["data"]:
        assert set(each) - {"sampling"} == {"id", "object", "created", "owned_by"}
        assert ("sampling" in each) == (each["id"] != "fake-embedding")
        assert each["object"] == "model"
        assert isinstance(each["created"], int)


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize("name", [MODEL, "owner/model", "owner%2Fmodel", "gpt-4o", "default"])
async def test_one_is_found_as_it_was_named(many: Site, prefix: str, name: str) -> None:
    answer = await many.client.get(f"{prefix}/models/{name}")
    assert answer.status_code == 200
    assert answer.json()["id"] == name.replace("%2F", "/")


@pytest.mark.parametrize("name", ["nothing", "owner", ""])
async def test_unknown_one_is_not_found(many: Site, name: str) -> None:
    refused = await many.client.get(f"/v1/models/{name}")
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "model_not_found"


async def test_codex_finds_the_chat_models_beside_them(many: Site) -> None:
    """With every field that it refuses to miss, as its `ModelInfo` has them."""
    await many.services.models.get_model()
    listed = (await many.client.get("/v1/models", params={"client_version": "0.171.0"})).json()["models"]
    assert [each["slug"] for each in listed] == [MODEL, "owner/model"]
    needed = "slug display_name description supported_reasoning_levels shell_type visibility supported_in_api priority"
    needed += " upgrade base_instructions supports_reasoning_summaries support_verbosity default_verbosity"
    needed += " apply_patch_tool_type truncation_policy supports_parallel_tool_calls experimental_supported_tools"
    for each in listed:
        assert set(needed.split()) <= set(each)
    assert listed[0]["context_window"] == many.services.models.context_length(MODEL)
    assert listed[1]["context_window"] is None


async def test_a_loaded_model_lists_its_capabilities(many: Site, engine: FakeEngine) -> None:
    engine.images = cast(ImageReader, object())  # nothing is looked at
    engine.tokenizer.chat_template = '{{ messages }}{{ tools }}<tool_call>"arguments"<think></think>'
    await many.services.models.get_model()
    found = (await many.client.get(f"/v1/models/{MODEL}")).json()
    assert found["capabilities"] == ["completion", "tools", "thinking", "vision"]
    assert (found["input_modalities"], found["output_modalities"]) == (["text", "image"], ["text"])
    shown = (await many.client.post("/api/show", json={"model": MODEL})).json()
    assert shown["capabilities"] == found["capabilities"]
    (codex, _) = (await many.client.get("/v1/models")).json()["models"]
    assert [level["effort"] for level in codex["supported_reasoning_levels"]] == ["low", "medium", "high"]
    assert codex["input_modalities"] == ["text", "image"]


async def test_nothing_is_loaded_by_looking(many: Site) -> None:
    await many.client.get("/v1/models")
    await many.client.get(f"/v1/models/{MODEL}")
    assert many.services.models.stats() == {}


async def test_context_length_is_known_once_the_model_is_loaded(many: Site) -> None:
    before = (await many.client.get(f"/v1/models/{MODEL}")).json()
    assert "max_model_len" not in before
    length = (await many.services.models.get_model(MODEL)).max_length
    after = (await many.client.get(f"/v1/models/{MODEL}")).json()
    assert (after["max_model_len"], after["context_length"]) == (length, length)
