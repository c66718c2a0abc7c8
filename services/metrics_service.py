"""Prometheus metrics, under vLLM's names with our prefix."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.chat.events import Arguments, Event, Finish, Head, Reasoning, Text, ToolCall
from services.engine.base import EngineStats, UpstreamStats
from services.token_rate import TokenRate

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which is not used

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
SHORT_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2)


class Metrics:
    """One set per application, in its own registry, so that several applications can share a process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens read", ["model"])
        self._generation_tokens = self._counter("generation_tokens", "Tokens sampled", ["model"])
        self._success = self._counter("request_success", "Requests answered", ["model", "finished_reason"])
        self._embedded = self._counter("embedding_tokens", "Tokens embedded", ["model"])
        self._first = self._histogram("time_to_first_token_seconds", "Request to first text", SECONDS)
        self._between = self._histogram("inter_token_latency_seconds", "Between pieces of text", SHORT_SECONDS)
        self._whole = self._histogram("e2e_request_latency_seconds", "Request to end of answer", SECONDS)
        self._cached = self._counter("prompt_tokens_cached", "Prompt tokens that were in the cache", ["model"])
        self._queued = self._histogram("request_queue_time_seconds", "Request to its first step", SECONDS)
        self._prefill = self._histogram("request_prefill_time_seconds", "First step to first token", SECONDS)
        self._decode = self._histogram("request_decode_time_seconds", "First token to last", SECONDS)
        self._http = self._counter("http_requests", "HTTP requests", ["method", "route", "status"])
        self._rates: defaultdict[str, TokenRate] = defaultdict(lambda: TokenRate(clock))

    def watch(self, stats: Callable[[], Mapping[str, EngineStats]]) -> None:
        """Registers a collector that reads the engines' stats on each scrape."""
        self.registry.register(_EngineGauges(stats))

    def answer(self, model: str) -> "AnswerTimer":
        return AnswerTimer(self, model, self._between.labels(model), self._rates[model])

    def tokens_per_second(self, model: str) -> float:
        """Of all answers together, over the last seconds."""
        return self._rates[model].per_second

    def embedded(self, model: str, tokens: int) -> None:
        self._embedded.labels(model).inc(tokens)

    def http(self, method: str, route: str, status: int) -> None:
        self._http.labels(method, route, status).inc()

    def render(self) -> bytes:
        return generate_latest(self.registry)

    def _finished(self, model: str, finish: Finish, shares: int) -> None:
        if finish.index % shares == 0:  # choices that share a prompt
            self._prompt_tokens.labels(model).inc(finish.prompt_tokens)
            self._cached.labels(model).inc(finish.cached_tokens)
        self._generation_tokens.labels(model).inc(finish.completion_tokens)
        if times := finish.times:
            self._queued.labels(model).observe(times.queued)
            self._prefill.labels(model).observe(times.prefill)
            self._decode.labels(model).observe(times.decode)

    def _counter(self, name: str, help: str, labels: list[str]) -> Counter:
        return Counter(f"parley_{name}", help, labels, registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"parley_{name}", help, ["model"], registry=self.registry, buckets=buckets)


@dataclass(slots=True)
class AnswerTimer:
    """Times one answer, from its events and its end."""

    _metrics: Metrics
    _model: str
    _between: Histogram  # of this model: the label is looked up once, not for each chunk
    _rate: TokenRate
    _started: float = field(default_factory=time.perf_counter)
    _last: float | None = None
    _reason: str = "abort"
    _shares: int = 1
    _counted: int = 0  # tokens, as they come
    _completed: int = 0  # tokens of the choices that are complete

    def add(self, event: Event) -> None:
        now = time.perf_counter()
        match event:
            case Head():
                self._shares = event.shares
            case Finish():
                self._reason = event.reason
                self._metrics._finished(self._model, event, self._shares)
                self._completed += event.completion_tokens
                self._count(max(0, self._completed - self._counted))  # those that no piece of text had
            case Text() | Reasoning() | ToolCall() | Arguments():
                self._observe_output(now)
                self._count(len(event.token_ids))
            case _:
                self._observe_output(now)

    def _count(self, tokens: int) -> None:
        self._counted += tokens
        self._rate.add(tokens)

    def _observe_output(self, now: float) -> None:
        if self._last is None:
            self._metrics._first.labels(self._model).observe(now - self._started)
        else:
            self._between.observe(now - self._last)
        self._last = now

    def end(self) -> None:
        """To be called on every path."""
        self._metrics._success.labels(self._model, self._reason).inc()
        self._metrics._whole.labels(self._model).observe(time.perf_counter() - self._started)


# name, help, and where it is in an engine's stats
GAUGES: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("num_requests_running", "Sequences in the batch", lambda stats: stats.running),
    ("num_requests_waiting", "Requests in the queue", lambda stats: stats.waiting),
    (
        "kv_cache_usage_perc",
        "Share of the KV cache in use, 0 to 1",
        lambda stats: stats.cache_used / stats.cache_size if stats.cache_size else 0,
    ),
)
COUNTERS: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("prefix_cache_queries", "Prompt tokens looked for in the cache", lambda stats: stats.prefix_queried),
    ("prefix_cache_hits", "Prompt tokens found in the cache", lambda stats: stats.prefix_reused),
    ("spec_decode_num_draft_tokens", "Tokens that were guessed", lambda stats: stats.drafted),
    ("spec_decode_num_accepted_tokens", "Guessed tokens that were right", lambda stats: stats.accepted),
    ("num_preemptions", "Sequences sent back to the queue for want of memory", lambda stats: stats.preemptions),
)

UPSTREAM_GAUGES: tuple[tuple[str, str, Callable[[UpstreamStats], float]], ...] = (
    ("upstream_up", "Whether an upstream of a remote engine is sent requests, 0 or 1", lambda stats: stats.healthy),
    ("upstream_requests_running", "Requests at an upstream", lambda stats: stats.running),
)
UPSTREAM_COUNTERS: tuple[tuple[str, str, Callable[[UpstreamStats], float]], ...] = (
    ("upstream_requests", "Requests sent to an upstream", lambda stats: stats.requests),
    ("upstream_failures", "Requests that an upstream did not take or answer", lambda stats: stats.failures),
)


class _EngineGauges(Collector):
    def __init__(self, stats: Callable[[], Mapping[str, EngineStats]]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        engines = self._stats()
        for kind, entries in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for name, help, value in entries:
                family = kind(f"parley_{name}", help, labels=["model"])
                for model, stats in engines.items():
                    family.add_metric([model], value(stats))
                yield family
        yield from self._upstreams(engines)

    def _upstreams(self, engines: Mapping[str, EngineStats]) -> Iterable[Metric]:
        listed = [(model, upstream) for model, stats in engines.items() for upstream in stats.upstreams]
        for kind, entries in ((GaugeMetricFamily, UPSTREAM_GAUGES), (CounterMetricFamily, UPSTREAM_COUNTERS)):
            for name, help, value in entries if listed else ():
                family = kind(f"parley_{name}", help, labels=["model", "upstream"])
                for model, upstream in listed:
                    family.add_metric([model, upstream.name], value(upstream))
                yield family
