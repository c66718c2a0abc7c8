"""The composed app: models, lifespan, middleware."""

import asyncio
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from tests.apps import MODEL, NewSite, Site
from tests.fakes import FakeEngine

HI = {"messages": [{"content": "hi"}]}


class Builder:
    def __init__(self) -> None:
        self.built: list[tuple[str, dict[str, object]]] = []

    def __call__(self, kind: str, /, **options: object) -> FakeEngine:
        self.built.append((kind, options))
        return FakeEngine("Hello")


async def names(site: Site) -> list[str]:
    return [each["id"] for each in (await site.client.get("/v1/models")).json()["data"]]


class TestModels:
    async def test_names_follow_the_source(self, new_site: NewSite, tmp_path: Path) -> None:
        folder = tmp_path / "my-model"
        folder.mkdir()
        models = [
            {"name": "/somewhere/tiny.Q4_1.gguf"},
            {"name": "owner/model"},
            {"name": "owner/other", "id": "renamed"},
        ]
        site = await new_site(models=models, model={"name": f"{folder}/"})
        assert await names(site) == ["my-model", "tiny.Q4_1", "owner/model", "renamed", "fake-embedding"]

    async def test_duplicate_names_are_rejected(self, new_site: NewSite) -> None:
        with pytest.raises(ValueError, match="'twin'"):
            await new_site(models=[{"name": "a", "id": "twin"}], model={"name": "b", "id": "twin"})

    async def test_default_models_have_their_own_names(self, new_site: NewSite) -> None:
        site = await new_site(model={"preload": False}, embedding={"kind": "embedding"})
        chat, embedding = await names(site)
        assert "default" not in (chat, embedding)
        assert (await site.client.get("/chat")).json()["model_name"] == chat

    async def test_settings_reach_the_engine(self, new_site: NewSite) -> None:
        builder = Builder()
        model = {"name": MODEL, "device": "cpu", "dtype": "float32"}
        site = await new_site(build=builder, model=model, engine={"max_num_seqs": 3, "max_queue": 4})
        assert (await site.client.post("/v1/chat/completions", json=HI)).status_code == 200
        ((kind, options),) = builder.built
        assert kind == "chat"
        assert (options["source"], options["engine"]) == (MODEL, "local")
        assert options["settings"] == {
            "device": "cpu",
            "dtype": "float32",
            "compile_dir": str(Path("models") / "compiled"),
            "max_model_len": None,
            "max_num_seqs": 3,
            "max_num_batched_tokens": 512,
            "max_queue": 4,
            "block_size": 1,
            "num_gpu_blocks_override": None,
            "kv_cache_ratio": 1,
            "kv_cache_dtype": "auto",
            "use_warmup": False,
            "gpu_memory_utilization": 0.9,
            "cpu_memory_share": 0.4,
            "prefix_cache": True,
            "share_prefixes": False,
            "speculation": True,
            "quantization": None,
            "tensor_parallel_size": 1,
            "trust_remote_code": False,
            "enable_mm": None,
        }

    async def test_configured_models_are_preloaded(self, new_site: NewSite) -> None:
        builder = Builder()
        site = await new_site(build=builder, model={"name": MODEL, "preload": True})
        await site.services.models.get_model()
        assert len(builder.built) == 1

    async def test_aliases_are_served(self, new_site: NewSite) -> None:
        site = await new_site(model={"name": MODEL, "aliases": {"*": "default"}})
        answer = await site.client.post("/v1/chat/completions", json={**HI, "model": "gpt-4o"})
        assert answer.json()["model"] == "gpt-4o"


class TestLife:
    async def test_empty_database_is_migrated_at_start(self, new_site: NewSite, tmp_path: Path) -> None:
        site = await new_site(database={"url": f"sqlite:///{tmp_path}/new.db"})
        answer = await site.client.post("/chat/new/message/", json={"prompt": "hi"})
        assert answer.status_code == 200

    async def test_engines_stop_with_the_app(self, new_app: Callable[..., FastAPI], engine: FakeEngine) -> None:
        app = new_app()
        async with app.router.lifespan_context(app):
            await app.state.services.models.get_model()
            assert not engine.stopped
        assert engine.stopped

    async def test_two_apps_in_one_process_are_independent(self, new_site: NewSite) -> None:
        one, two = await new_site(), await new_site(system_prompt="x")
        await one.client.post("/v1/chat/completions", json=HI)
        assert "parley_request_success_total{" in (await one.client.get("/metrics")).text
        assert "parley_request_success_total{" not in (await two.client.get("/metrics")).text

    async def test_answers_run_concurrently(self, site: Site, engine: FakeEngine) -> None:
        answers = await asyncio.gather(*(site.client.post("/v1/chat/completions", json=HI) for _ in range(20)))
        assert {answer.json()["choices"][0]["message"]["content"] for answer in answers} == {"Hello, world!"}
        assert len({answer.json()["id"] for answer in answers}) == 20
        assert engine.starts == 1


async def test_documents_load_nothing_from_elsewhere(site: Site) -> None:
    assert (await site.client.get("/openapi.json")).status_code == 200
    for path in ("/docs", "/redoc"):
        page = (await site.client.get(path)).text
        sources = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert len(sources) >= 2
        for source in sources:
            assert (await site.client.get(f"/{source}")).status_code == 200


async def test_metrics_port_is_open_while_the_app_runs(new_site: NewSite) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    site = await new_site(server={"metrics_port": port}, api_keys=["secret"])
    assert (await site.client.get("/metrics")).status_code == 401
    async with httpx2.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{port}/metrics")
    assert "parley_num_requests_running" in answer.text


async def test_dependencies_do_not_use_threads(site: Site) -> None:
    before = set(threading.enumerate())
    await site.client.post("/v1/chat/completions", json=HI)
    for path in ("/v1/models", "/v1/chat/completions", "/v1/conversations/none/items"):
        await site.client.get(path)
    assert "AnyIO worker thread" not in {thread.name for thread in set(threading.enumerate()) - before}
