"""What Prometheus reads."""

import re

import pytest

from schemas.chat_schema import ChatCompletionRequest
from services.chat_service import ChatService
from services.conversation_service import ConversationService
from services.engine.base import EngineStats
from services.errors import EngineFailed, Overloaded
from services.metrics_service import Metrics
from services.model_service import ModelManager
from tests.apps import MODEL
from tests.fakes import FakeEngine

REQUEST = ChatCompletionRequest.model_validate({"messages": [{"content": "hi"}]})


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def chat(models: ModelManager, conversations: ConversationService, metrics: Metrics) -> ChatService:
    return ChatService(models, conversations, metrics)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"parley_{name}", {"model": MODEL, **labels})


async def test_answer_is_counted_and_timed(chat: ChatService, metrics: Metrics, engine: FakeEngine) -> None:
    await chat.create(REQUEST, "me")
    assert value(metrics, "prompt_tokens_total") == len(engine.jobs[0].prompt)
    assert value(metrics, "generation_tokens_total") == 3
    assert value(metrics, "request_success_total", finished_reason="stop") == 1
    assert value(metrics, "time_to_first_token_seconds_count") == 1
    assert value(metrics, "inter_token_latency_seconds_count") == 2
    assert value(metrics, "e2e_request_latency_seconds_count") == 1


async def test_broken_answer_is_counted_as_one(chat: ChatService, metrics: Metrics, engine: FakeEngine) -> None:
    engine.script = ("Hel", EngineFailed("broken"))
    with pytest.raises(EngineFailed):
        await chat.create(REQUEST, "me")
    assert value(metrics, "request_success_total", finished_reason="abort") == 1
    assert value(metrics, "request_success_total", finished_reason="stop") is None


async def test_refused_request_is_no_answer(chat: ChatService, metrics: Metrics, engine: FakeEngine) -> None:
    engine.refusal = Overloaded("full")
    with pytest.raises(Overloaded):
        await chat.create(REQUEST, "me")
    assert value(metrics, "e2e_request_latency_seconds_count") is None


def test_engines_are_asked_when_somebody_looks(metrics: Metrics) -> None:
    stats = {MODEL: EngineStats(running=2, waiting=3, cache_used=25, cache_size=100), "empty": EngineStats()}
    metrics.watch(lambda: stats)
    assert value(metrics, "num_requests_running") == 2
    assert value(metrics, "num_requests_waiting") == 3
    assert value(metrics, "kv_cache_usage_perc") == 0.25
    assert value(metrics, "kv_cache_usage_perc", model="empty") == 0
    stats.clear()
    assert value(metrics, "num_requests_running") is None


def test_two_sets_do_not_meet(metrics: Metrics) -> None:
    metrics.embedded(MODEL, 5)
    assert value(metrics, "embedding_tokens_total") == 5
    assert value(Metrics(), "embedding_tokens_total") is None


def test_every_name_is_ours(metrics: Metrics) -> None:
    metrics.watch(dict)
    names = re.findall(r"^# TYPE (\S+)", metrics.render().decode(), re.MULTILINE)
    assert len(names) > 8
    assert all(name.startswith("parley_") for name in names)
