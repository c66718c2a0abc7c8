"""Chat completions of a remote engine, to the byte what those of any other are."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fastapi import FastAPI

from services.engine.base import UpstreamAddress
from services.engine.remote.engine import RemoteEngine
from services.engine.remote.model_info import ModelInfo
from services.engine.remote.router import Router
from services.engine.remote.upstream import Upstream
from tests.fakes import FakeEngine
from tests.test_controller import test_chat_controller as chat
from tests.test_engine.test_remote.scripted import PieceTokenizer, ScriptedServer


@pytest.fixture
def tokenizer() -> PieceTokenizer:
    return PieceTokenizer()


@pytest.fixture
async def upstream(engine: FakeEngine, tokenizer: PieceTokenizer) -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer(engine, tokenizer).serving() as server:
        assert isinstance(server, ScriptedServer)
        yield server


@pytest.fixture
def new_app(
    new_app: Callable[..., FastAPI], upstream: ScriptedServer, tokenizer: PieceTokenizer
) -> Callable[..., FastAPI]:
    def remote(kind: str, /, **options: Any) -> RemoteEngine:
        model = ModelInfo(tokenizer, frozenset(), 4096, len(tokenizer))
        return RemoteEngine(model, Router([Upstream(UpstreamAddress(upstream.url), timeout_s=60)]))

    return lambda **settings: new_app(**{"build": remote, **settings})


class TestTranscript(chat.TestTranscript): ...


class TestOthers:
    test_client_leaves_a_stream = chat.TestClientGone.test_streamed
    test_queue_full = chat.TestRefusedBeforeTheStreamOpens.test_queue_full
    test_template_that_refuses = chat.TestParameters.test_template_that_refuses
    test_generated_text_is_stored = chat.TestAfterTheFirstByte.test_generated_text_is_stored


test_official_client = chat.test_answer_comes_back_as_the_official_clients_dump_it
