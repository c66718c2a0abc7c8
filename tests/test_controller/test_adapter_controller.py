"""LoRA adapters come and go by request: vLLM's shapes, an admin key, and every protocol finds them by name."""

from dataclasses import replace
from pathlib import Path

import pytest

from services.adapter_service import AdapterService
from services.engine.loading.unusable import UnusableModel
from services.models import sources
from services.models.config import ModelConfig
from services.models.default_models import DEFAULT_CHAT
from tests.apps import MODEL, NewSite, Site
from tests.fakes import FakeEngine
from tests.test_services.test_adapters import AdaptableEngine

ADMIN, USER = "admin-key-of-this-test", "user-key-of-this-test"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
BODY = {"lora_name": "sql", "lora_path": "folder"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def engine() -> FakeEngine:
    return AdaptableEngine()


@pytest.fixture
async def site(new_site: NewSite) -> Site:
    return await new_site(api_keys=[USER], admin_key=ADMIN)


async def test_an_adapter_is_loaded_listed_asked_and_unloaded(site: Site, engine: AdaptableEngine) -> None:
    client = site.client
    loaded = await client.post(LOAD, json=BODY, headers=bearer(ADMIN))
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
    listed = (await client.get("/v1/models", headers=bearer(USER))).json()["data"]
    assert {each["id"]: each.get("parent") for each in listed}["sql"] == MODEL
    messages = [{"role": "user", "content": "hi"}]
    for path, body in (
        ("/v1/chat/completions", {"messages": messages}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/messages", {"messages": messages, "max_tokens": 5}),
        ("/api/chat", {"messages": messages, "stream": False}),
    ):
        answer = await client.post(path, json={"model": "sql", **body}, headers=bearer(USER))
        assert (answer.status_code, answer.json()["model"]) == (200, "sql"), path
        assert engine.jobs[-1].adapter == "sql", path
    unloaded = await client.post(UNLOAD, json={"lora_name": "sql"}, headers=bearer(ADMIN))
    assert (unloaded.status_code, unloaded.text) == (200, "Success: LoRA adapter 'sql' removed successfully.")
    asked = {"model": "sql", "messages": messages}
    assert (await client.post("/v1/chat/completions", json=asked, headers=bearer(USER))).status_code == 404


async def test_only_an_administrator_may(site: Site, engine: AdaptableEngine) -> None:
    for path in (LOAD, UNLOAD):
        for body in (BODY, {}):
            assert (await site.client.post(path, json=body, headers=bearer(USER))).status_code == 404
    assert engine.adapters == {}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (LOAD, {"lora_name": "sql"}, 400, "lora_path"),
        (LOAD, {"lora_name": "sql", "lora_path": "broken"}, 400, "lora_path"),
        (LOAD, {"lora_name": MODEL, "lora_path": "folder"}, 400, "lora_name"),
        (LOAD, {**BODY, "model": "nothing"}, 404, "model"),
        (UNLOAD, {"lora_name": "nothing"}, 404, "lora_name"),
    ],
)
async def test_what_is_refused_by_name(path: str, body: dict[str, str], status: int, param: str, site: Site) -> None:
    refused = await site.client.post(path, json=body, headers=bearer(ADMIN))
    assert (refused.status_code, refused.json()["error"]["param"]) == (status, param)


async def test_one_of_several_processes_does_not_load_alone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = AdapterService(site.services.models, workers=2)
    monkeypatch.setattr(site.app.state, "services", replace(site.services, adapters=alone))
    refused = await site.client.post(LOAD, json=BODY, headers=bearer(ADMIN))
    assert "PARLEY_SERVER__WORKERS" in refused.json()["error"]["message"]


def test_a_folder_that_is_none_is_refused_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    config = ModelConfig("m", DEFAULT_CHAT, adapters={"sql": str(tmp_path / "adapter")})
    with pytest.raises(UnusableModel, match=r"ADAPTERS\['sql'\]: .*has no adapter_config.json"):
        sources.check([config])
