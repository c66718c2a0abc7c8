"""Probes and /metrics."""

import asyncio
import threading

import pytest

from tests.apps import MODEL, NewSite, Site
from tests.fakes import FakeEngine

HI = {"messages": [{"content": "hi"}]}


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_probes(site: Site, path: str) -> None:
    answer = await site.client.get(path)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_loading_is_alive_but_not_ready(new_site: NewSite, engine: FakeEngine) -> None:
    gate = threading.Event()

    def build(kind: str, /, **options: object) -> FakeEngine:
        gate.wait()
        return engine

    site = await new_site(build=build, model={"name": MODEL, "preload": True})
    answer = await site.client.get("/health/ready")
    assert (answer.status_code, answer.json()) == (503, {"status": "loading"})
    assert (await site.client.get("/health/live")).status_code == 200
    gate.set()
    await site.services.models.get_model()
    assert (await site.client.get("/health/ready")).status_code == 200


async def test_not_ready_while_the_model_cannot_be_loaded(new_site: NewSite, engine: FakeEngine) -> None:
    failures = [OSError("/secret/path is broken")]

    def build(kind: str, /, **options: object) -> FakeEngine:
        if failures:
            raise failures.pop()
        return engine

    site = await new_site(build=build)
    assert (await site.client.get("/health/ready")).status_code == 200  # as it is loaded at its first request
    assert (await site.client.post("/v1/chat/completions", json=HI)).status_code == 500
    answer = await site.client.get("/health/ready")
    assert (answer.status_code, answer.json()) == (503, {"status": "failed"})
    status = (await site.client.get("/chat")).json()
    assert (status["status"], status["reason"]) == ("not started", "failed")
    assert "secret" not in str(status)
    assert (await site.client.get("/health/live")).status_code == 200
    assert (await site.client.post("/v1/chat/completions", json=HI)).status_code == 200
    assert (await site.client.get("/health/ready")).status_code == 200


async def test_the_model_is_preloaded_unless_disabled(new_site: NewSite, engine: FakeEngine) -> None:
    gate = threading.Event()

    def build(kind: str, /, **options: object) -> FakeEngine:
        gate.wait()
        return engine

    site = await new_site(build=build, model={"name": MODEL})
    assert (await site.client.get("/health/ready")).json() == {"status": "loading"}
    waiting = asyncio.create_task(site.client.post("/v1/chat/completions", json=HI))
    gate.set()
    assert (await waiting).status_code == 200
    assert (await site.client.get("/health/ready")).status_code == 200


async def test_a_stalled_engine_is_alive_but_not_ready(site: Site, engine: FakeEngine) -> None:
    await site.client.post("/v1/chat/completions", json=HI)
    engine.stalled = True
    answer = await site.client.get("/health/ready")
    assert (answer.status_code, answer.json()) == (503, {"status": "stalled"})
    assert (await site.client.get("/health/live")).status_code == 200


async def test_draining_is_alive_but_not_ready(site: Site) -> None:
    site.services.drain.has_begun = True
    answer = await site.client.get("/health/ready")
    assert (answer.status_code, answer.json()) == (503, {"status": "draining"})
    assert (await site.client.get("/health")).status_code == 200


class TestMetrics:
    async def test_answers_are_counted(self, site: Site) -> None:
        await site.client.post("/v1/chat/completions", json=HI)
        answer = await site.client.get("/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        lines = answer.text.splitlines()
        assert f'parley_request_success_total{{finished_reason="stop",model="{MODEL}"}} 1.0' in lines
        assert f'parley_num_requests_running{{model="{MODEL}"}} 0.0' in lines

    @pytest.mark.parametrize(
        ("method", "path", "route", "status"),
        [
            ("POST", "/v1/chat/completions", "/v1/chat/completions", 200),
            ("POST", "/chat/completions", "/chat/completions", 200),
            ("GET", "/v1/models/fake-chat", "/v1/models/{model:path}", 200),
            ("GET", "/v1/models/a/b/c", "/v1/models/{model:path}", 404),
            ("PUT", "/v1/chat/completions", "/v1/chat/completions", 405),
            ("GET", "/no/such/route", "unmatched", 404),
            ("GET", "/static/nothing.js", "unmatched", 404),
            ("BREW", "/health", "/health", 405),
        ],
    )
    async def test_routes_are_counted_by_their_pattern(
        self, site: Site, method: str, path: str, route: str, status: int
    ) -> None:
        answer = await site.client.request(method, path, json=HI)
        assert answer.status_code == status
        (line,) = [
            line
            for line in (await site.client.get("/metrics")).text.splitlines()
            if line.startswith("parley_http_requests_total")
        ]
        known = method if method != "BREW" else "other"
        assert line == f'parley_http_requests_total{{method="{known}",route="{route}",status="{status}"}} 1.0'
