"""What Prometheus reads."""

import re

import pytest

from schemas.chat_schema import ChatCompletionRequest
from services.chat.events import Finish, Reasoning, Text
from services.chat_service import ChatService
from services.engine.base import EngineStats, Piece, Times, UpstreamStats
from services.errors import EngineFailed, Overloaded
from services.metrics_service import Metrics
from services.model_service import ModelManager
from services.turn_service import TurnService
from tests.apps import MODEL
from tests.fakes import FakeEngine

REQUEST = ChatCompletionRequest.model_validate({"messages": [{"content": "hi"}]})


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def chat(models: ModelManager, turns: TurnService, metrics: Metrics) -> ChatService:
    return ChatService(models, turns, metrics)


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


async def test_cached_tokens_and_phases_are_counted(chat: ChatService, metrics: Metrics, engine: FakeEngine) -> None:
    engine.script = (Piece("Hi", (0,), "stop", cached_tokens=7, times=Times(0.5, 1.5, 2.5)),)
    assert (await chat.create(REQUEST, "me")).usage.prompt_tokens_details.cached_tokens == 7
    assert value(metrics, "prompt_tokens_cached_total") == 7
    assert value(metrics, "request_queue_time_seconds_sum") == 0.5
    assert value(metrics, "request_prefill_time_seconds_sum") == 1.5
    assert value(metrics, "request_decode_time_seconds_sum") == 2.5


def test_tokens_a_second_are_known_while_they_come() -> None:
    now = [10.0]
    metrics = Metrics(clock=lambda: now[0])
    timer = metrics.answer(MODEL)
    for event in (Text("a", (1, 2)), Reasoning("b", (3,)), Text("no token of its own")):
        timer.add(event)
    assert metrics.tokens_per_second(MODEL) == 0  # the second is not over
    now[0] += 1
    assert metrics.tokens_per_second(MODEL) == 3 / 5
    timer.add(Finish("stop", prompt_tokens=9, completion_tokens=5))  # two of them without a text
    now[0] += 1
    assert metrics.tokens_per_second(MODEL) == 5 / 5
    assert metrics.tokens_per_second("another") == 0


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
    full = EngineStats(2, 3, cache_used=25, cache_size=100, prefix_queried=50, prefix_reused=40, preemptions=6)
    stats = {MODEL: full, "empty": EngineStats()}
    metrics.watch(lambda: stats)
    assert value(metrics, "num_requests_running") == 2
    assert value(metrics, "num_requests_waiting") == 3
    assert value(metrics, "kv_cache_usage_perc") == 0.25
    assert value(metrics, "kv_cache_usage_perc", model="empty") == 0
    assert value(metrics, "prefix_cache_queries_total") == 50
    assert value(metrics, "prefix_cache_hits_total") == 40
    assert value(metrics, "num_preemptions_total") == 6
    stats.clear()
    assert value(metrics, "num_requests_running") is None


def test_each_upstream_has_its_share(metrics: Metrics) -> None:
    upstreams = (UpstreamStats("gpu1:8000", True, 2, 30, 1), UpstreamStats("gpu2:8000", False))
    metrics.watch(lambda: {MODEL: EngineStats(upstreams=upstreams), "local": EngineStats()})
    names = ("up", "requests_running", "requests_total", "failures_total")
    found = {each.name: [value(metrics, f"upstream_{n}", upstream=each.name) for n in names] for each in upstreams}
    assert found == {"gpu1:8000": [1, 2, 30, 1], "gpu2:8000": [0, 0, 0, 0]}


def test_two_sets_do_not_meet(metrics: Metrics) -> None:
    metrics.embedded(MODEL, 5)
    assert value(metrics, "embedding_tokens_total") == 5
    assert value(Metrics(), "embedding_tokens_total") is None


def test_every_name_is_ours(metrics: Metrics) -> None:
    metrics.watch(dict)
    names = re.findall(r"^# TYPE (\S+)", metrics.render().decode(), re.MULTILINE)
    assert len(names) > 8
    assert all(name.startswith("parley_") for name in names)
