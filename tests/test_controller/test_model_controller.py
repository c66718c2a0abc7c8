"""GET /v1/models."""

from typing import ClassVar, cast

import pytest

from services.engine.base import ImageReader
from services.errors import EngineFailed
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
        assert set(each) - {"sampling"} == {"id", "object", "created", "owned_by", "status"}
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


class TestLoading:
    KEYS: ClassVar = {"api_keys": ["user-key-of-this-test"], "admin_key": "admin-key-of-this-test"}
    ADMIN: ClassVar = {"Authorization": "Bearer admin-key-of-this-test"}
    USER: ClassVar = {"Authorization": "Bearer user-key-of-this-test"}

    async def state(self, site: Site, name: str = MODEL) -> str:
        found = (await site.client.get(f"/v1/models/{name}", headers=self.USER)).json()
        return str(found["status"]["value"])

    async def test_a_model_is_loaded_and_unloaded(self, new_site: NewSite, engine: FakeEngine) -> None:
        site = await new_site(**self.KEYS, models=[HUB])
        for name in (MODEL, "owner/model", "owner%2Fmodel"):
            loaded = await site.client.post(f"/v1/models/{name}/load", headers=self.ADMIN)
            assert (loaded.status_code, loaded.json()["status"]) == (200, {"value": "loaded"})
            assert await self.state(site, name) == "loaded"
            unloaded = await site.client.post(f"/models/{name}/unload", headers=self.ADMIN)
            assert (unloaded.status_code, unloaded.json()["status"]) == (200, {"value": "unloaded"})
            assert await self.state(site, name) == "unloaded"
        assert engine.starts == 3

    async def test_only_an_administrator_may(self, new_site: NewSite, site: Site) -> None:
        guarded = await new_site(**self.KEYS)
        for path in (f"/v1/models/{MODEL}/load", f"/v1/models/{MODEL}/unload", "/v1/models/nothing/load"):
            assert (await guarded.client.post(path, headers=self.USER)).status_code == 404
            assert (await site.client.post(path)).status_code == 404  # without keys everybody would be one
        assert await self.state(guarded) == "unloaded"

    async def test_unknown_one_is_not_found(self, new_site: NewSite) -> None:
        site = await new_site(**self.KEYS)
        for action in ("load", "unload"):
            refused = await site.client.post(f"/v1/models/nothing/{action}", headers=self.ADMIN)
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")

    async def test_one_that_answers_is_not_unloaded(self, new_site: NewSite) -> None:
        site = await new_site(**self.KEYS)
        async with site.services.models.lease(MODEL):
            refused = await site.client.post(f"/v1/models/{MODEL}/unload", headers=self.ADMIN)
            assert (refused.status_code, refused.json()["error"]["param"]) == (409, "model")
        assert (await site.client.post(f"/v1/models/{MODEL}/unload", headers=self.ADMIN)).status_code == 200

    async def test_failed_load_is_said_and_shown(self, new_site: NewSite) -> None:
        def build(kind: str, **options: object) -> object:
            raise EngineFailed("it has no layers")

        site = await new_site(**self.KEYS, build=build)
        refused = await site.client.post(f"/v1/models/{MODEL}/load", headers=self.ADMIN)
        assert refused.status_code == 500
        assert "it has no layers" in refused.json()["error"]["message"]
        assert await self.state(site) == "failed"
