"""Models of a hub that are pulled and deleted over HTTP; as Ollama's client does it, too."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ollama
import pytest
from openai import AsyncOpenAI

from app.common import sse
from services.errors import InvalidRequest
from services.model_service import ModelManager
from services.models.config import ModelConfig
from services.pull_service import PullService
from tests.apps import MODEL, NewSite, Site
from tests.hub import CONFIG, Hub, weights

ADMIN = {"Authorization": "Bearer admin-key-of-this-test"}
USER = {"Authorization": "Bearer user-key-of-this-test"}
KEYS: dict[str, Any] = {"api_keys": ["user-key-of-this-test"], "admin_key": "admin-key-of-this-test"}
ALLOWED: dict[str, Any] = {**KEYS, "server": {"allowed_pulls": ["owner/*"]}}
PULL = "/v1/models/owner/name/pull"
CHAT = {"model": "owner/name", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def server(new_server: NewSite, hub_home: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(sse, "FIRST_EVENT_WAIT_S", 60)  # a refusal has a status, however long the process takes
    return await new_server(**ALLOWED)


async def events(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    async for line in lines:
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


async def listed(site: Site) -> list[str]:
    found = (await site.client.get("/v1/models", headers=USER)).json()["data"]
    return [each["id"] for each in found if each["id"].startswith("owner/")]


def part(home: Path) -> int:
    """Bytes of the weights so far."""
    return sum(path.stat().st_size for path in home.rglob("*.part"))


def contents(home: Path, name: str) -> list[bytes]:
    return [path.read_bytes() for path in home.rglob(name)]


async def test_pulled_served_and_deleted(server: Site, new_server: NewSite, fake_hub: Hub) -> None:
    async with server.client.stream("POST", PULL, json={"stream": True}, headers=ADMIN) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        *_, last = [event async for event in events(answer.aiter_lines())]
    size = sum(len(fake_hub.files[name]) for name in ("config.json", "tokenizer.json", "model.safetensors"))
    assert last == {
        "id": "owner/name",
        "object": "model.pull",
        "status": "completed",
        "completed": size,
        "total": size,
    }
    assert await listed(server) == ["owner/name"]
    chat = await server.client.post("/v1/chat/completions", json=CHAT, headers=USER)
    assert chat.json()["choices"][0]["message"]["content"] == "Hello, world!"
    about = (await server.client.get("/v1/models/owner/name", headers=USER)).json()
    assert about["memory"]["quantization"] == CONFIG["dtype"].replace("bfloat16", "bf16")  # type: ignore[attr-defined]
    assert about["memory"]["fits_in"] in ("RAM", "GPU memory")
    again = await server.client.post(PULL, headers=ADMIN)
    assert (again.status_code, again.json()["status"], len(fake_hub.ranges)) == (200, "completed", 1)

    restarted = await new_server(**ALLOWED)
    assert await listed(restarted) == ["owner/name"]
    assert await listed(await new_server(**KEYS)) == []  # no longer allowed

    async with AsyncOpenAI(base_url=f"{server.client.base_url}/v1", api_key="admin-key-of-this-test") as client:
        deleted = await client.models.delete("owner/name")
    assert (deleted.id, deleted.object, deleted.deleted) == ("owner/name", "model", True)
    assert await listed(server) == []
    missing = await server.client.delete("/v1/models/owner/name", headers=ADMIN)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_refusals(server: Site, new_server: NewSite, fake_hub: Hub) -> None:
    closed = await new_server(**KEYS)
    for site, path, headers, status, param in (
        (server, PULL, USER, 404, None),
        (server, "/v1/models/owner/other/pull", ADMIN, 404, "model"),
        (server, "/v1/models/another/name/pull", ADMIN, 403, "model"),
        (server, "/v1/models/..%2F../pull", ADMIN, 400, "model"),
        (server, "/v1/models/owner%2F..%2F..%2Fetc/pull", ADMIN, 400, "model"),
        (server, f"/v1/models/{MODEL}/pull", ADMIN, 400, "model"),
        (closed, PULL, ADMIN, 403, "model"),
    ):
        for body in ({"stream": True}, {}):
            refused = await site.client.post(path, json=body, headers=headers)
            assert (refused.status_code, refused.json()["error"]["param"]) == (status, param), path
    wrong = await server.client.post(PULL, json={"revision": "../.."}, headers=ADMIN)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "revision")
    fake_hub.files["config.json"] = b"[]"
    unusable = await server.client.post(PULL, headers=ADMIN)
    assert (unusable.status_code, "names no model_type" in unusable.json()["error"]["message"]) == (400, True)
    assert await listed(server) == []


async def test_one_of_several_processes_pulls_nothing(models: ModelManager) -> None:
    pulls = PullService(models, allowed=["*"], configure=lambda stored: ModelConfig("", ""), workers=2)
    for refused in (pulls.whole("owner/name"), pulls.delete("owner/name")):
        with pytest.raises(InvalidRequest, match="2 processes"):
            await refused


async def test_two_share_a_download_and_one_that_leaves_does_not_end_it(
    server: Site, fake_hub: Hub, hub_home: Path
) -> None:
    fake_hub.files["model.safetensors"], fake_hub.pause_at = weights(600_000), 200_000
    whole = asyncio.create_task(server.client.post(PULL, headers=ADMIN))
    async with server.client.stream("POST", PULL, json={"stream": True}, headers=ADMIN) as answer:
        first = await anext(events(answer.aiter_lines()))
        assert first["status"] == "downloading"
        assert 0 < first["completed"] < first["total"] == len(fake_hub.files["model.safetensors"])
        busy = await server.client.delete("/v1/models/owner/name", headers=ADMIN)
        assert busy.status_code == 409
    fake_hub.resume.set()
    assert (await whole).json()["status"] == "completed"
    assert fake_hub.ranges == [None]


async def test_download_whose_last_reader_leaves_goes_on_later(server: Site, fake_hub: Hub, hub_home: Path) -> None:
    data = fake_hub.files["model.safetensors"] = weights(600_000)
    fake_hub.pause_at = 300_000
    async with server.client.stream("POST", PULL, json={"stream": True}, headers=ADMIN) as answer:
        await anext(events(answer.aiter_lines()))
    fake_hub.pause_at = None
    assert (await server.client.post(PULL, headers=ADMIN)).status_code == 200
    first, second = fake_hub.ranges
    assert (first, int(str(second).strip("bytes=-")) > 0) == (None, True)
    assert contents(hub_home, "model.safetensors") == [data]


async def test_a_drain_ends_downloads(server: Site, fake_hub: Hub, hub_home: Path) -> None:
    fake_hub.files["model.safetensors"], fake_hub.pause_at = weights(600_000), 300_000
    async with server.client.stream("POST", PULL, json={"stream": True}, headers=ADMIN) as answer:
        found = events(answer.aiter_lines())
        await anext(found)
        server.services.pulls.interrupt()
        *_, last = [event async for event in found]
    assert "goes on from there" in last["error"]["message"]
    assert part(hub_home)


class TestOllama:
    @pytest.fixture
    async def client(self, server: Site) -> AsyncIterator[ollama.AsyncClient]:
        async with ollama.AsyncClient(str(server.client.base_url), headers=ADMIN) as client:
            yield client

    async def test_pulled_used_and_deleted(self, client: ollama.AsyncClient, server: Site, fake_hub: Hub) -> None:
        fake_hub.files["model.safetensors"] = weights(600_000)
        lines = [line async for line in await client.pull("hf.co/owner/name", stream=True)]
        assert [lines[0].status, *(line.status for line in lines[-3:])] == [
            "pulling manifest",
            "verifying sha256 digest",
            "writing manifest",
            "success",
        ]
        pulling = [line for line in lines if line.digest]
        assert pulling[0].status == f"pulling {str(pulling[0].digest).removeprefix('sha256:')[:12]}"
        assert pulling[-1].completed == pulling[-1].total
        assert (await client.pull("owner/name:latest")).status == "success"
        chat = await client.chat("hf.co/owner/name", [{"role": "user", "content": "hi"}])
        assert chat.message.content == "Hello, world!"
        assert "owner/name" in [each.model for each in (await client.ps()).models]
        assert (await client.show("hf.co/owner/name")).capabilities
        assert (await client.delete("hf.co/owner/name")).status == "success"
        assert "owner/name" not in [each.model for each in (await client.list()).models]

    async def test_refusals(self, client: ollama.AsyncClient, server: Site) -> None:
        for name, status in (("llama3.2", 400), ("owner/other", 404), ("another/name", 403)):
            with pytest.raises(ollama.ResponseError) as refused:
                await client.pull(name)
            assert refused.value.status_code == status
            with pytest.raises(ollama.ResponseError) as refused:
                [_ async for _ in await client.pull(name, stream=True)]
            assert refused.value.status_code == status
        unnamed = await server.client.post("/api/pull", json={}, headers=ADMIN)
        assert (unnamed.status_code, unnamed.json()) == (400, {"error": "'model' is missing"})
        with pytest.raises(ollama.ResponseError) as refused:
            await client.delete("owner/other")
        assert refused.value.status_code == 404
        as_user = await server.client.post("/api/pull", json={"model": "owner/name"}, headers=USER)
        assert (as_user.status_code, list(as_user.json())) == (404, ["error"])
        as_user = await server.client.request("DELETE", "/api/delete", json={"model": "owner/name"}, headers=USER)
        assert as_user.status_code == 404
