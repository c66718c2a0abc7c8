"""A pytest plugin: the tests' engine is an upstream, and what they test has a remote engine in front of it.

pytest -p tests.test_engine.test_remote.through_remote tests/test_controller/test_idempotency.py
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from services.engine.base import UpstreamAddress
from services.engine.remote.engine import RemoteEngine
from services.engine.remote.model_info import ModelInfo
from services.engine.remote.router import Router
from services.engine.remote.upstream import Upstream
from tests.fakes import FakeEngine
from tests.test_engine.test_remote.scripted import PieceTokenizer, ScriptedServer


@pytest.fixture(autouse=True)
async def through_remote(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    if "engine" not in request.fixturenames:
        yield
        return
    engine: FakeEngine = request.getfixturevalue("engine")
    tokenizer = PieceTokenizer()
    async with ScriptedServer(engine, tokenizer).serving() as server:

        def remote(kind: str, /, **options: Any) -> RemoteEngine:
            model = ModelInfo(tokenizer, frozenset(), 4096, len(tokenizer))
            return RemoteEngine(model, Router([Upstream(UpstreamAddress(server.url), timeout_s=60)]))

        def builder() -> Callable[..., RemoteEngine]:
            return remote

        monkeypatch.setattr(engine, "builder", builder)
        yield
