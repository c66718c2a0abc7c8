"""Spans as a collector gets them."""

import asyncio
import json
import sys
import threading
from collections.abc import Mapping, Sequence

import pytest
from openai import AsyncOpenAI
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from app.common.opentelemetry_tracer import OpenTelemetryTracer
from app.common.tracing import tracer_of
from services.engine.base import Embeddings, EngineStats, Piece, TextPrompts, Times, UpstreamAddress
from services.engine.remote.engine import RemoteEngine
from services.engine.remote.model_info import ModelInfo
from services.engine.remote.router import Router
from services.engine.remote.upstream import Upstream
from services.errors import Overloaded
from services.tracing import NO_TRACER, current
from tests.apps import MODEL, NewSite, Site, official, post
from tests.collector import Collector
from tests.fakes import FakeEngine
from tests.test_engine.test_remote.scripted import PieceTokenizer, ScriptedServer

SECRET = "the-secret-of-the-prompt"
TIMES = Times(queued=0.25, prefill=0.5, decode=1.0)
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CHAT = "POST /v1/chat/completions"
USER = [{"role": "user", "content": SECRET}]


@pytest.fixture
def engine() -> FakeEngine:
    end = Piece("!", token_ids=(0,), finish="stop", cached_tokens=3, times=TIMES)
    return FakeEngine("Hello", ", world", end, finish=None)


@pytest.fixture
async def site(new_server: NewSite, traced: Mapping[str, str]) -> Site:
    return await new_server(environment=traced)


def client(site: Site) -> AsyncOpenAI:
    return official(site)


async def test_an_answer_has_a_span_for_each_of_its_phases(site: Site, collector: Collector) -> None:
    body = {"messages": USER, "max_tokens": 50, "temperature": 0.5, "seed": 7, "store": True, "model": MODEL}
    answer = await post(site, "/v1/chat/completions", **body)
    trace = await collector.trace(CHAT)
    chat = trace[f"chat {MODEL}"]
    assert trace.children(CHAT) == [chat.name]
    assert set(trace.children(chat.name)) == {"prepare", "queue", "prefill", "decode", "store"}
    assert trace[CHAT].kind == "server"
    assert trace[CHAT].service == "parley"
    assert trace[CHAT].attributes["http.route"] == "/v1/chat/completions"
    assert trace[CHAT].attributes["http.response.status_code"] == 200
    assert {name: value for name, value in chat.attributes.items() if name.startswith("gen_ai.")} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "parley",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 7,
        "gen_ai.response.id": answer["id"],
        "gen_ai.response.model": MODEL,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": chat.attributes["gen_ai.response.time_to_first_chunk"],
        "gen_ai.usage.input_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": answer["usage"]["completion_tokens"],
        "gen_ai.usage.cache_read.input_tokens": 3,
    }


async def test_phases_are_as_long_as_the_engine_says(site: Site, collector: Collector) -> None:
    await post(site, "/v1/chat/completions", messages=USER)
    trace = await collector.trace(CHAT)
    queue, prefill, decode = (trace[name] for name in ("queue", "prefill", "decode"))
    assert [span.ended - span.started for span in (queue, prefill, decode)] == [250_000_000, 500_000_000, 1_000_000_000]
    assert (queue.ended, prefill.ended) == (prefill.started, decode.started)
    assert trace["prepare"].ended <= queue.started


async def test_a_stream_has_the_same_spans(site: Site, collector: Collector) -> None:
    async with client(site) as openai:
        stream = await openai.chat.completions.create(model=MODEL, messages=USER, stream=True)
        chunks = [chunk async for chunk in stream]
    trace = await collector.trace(CHAT)
    chat = trace[f"chat {MODEL}"]
    assert {"queue", "prefill", "decode"} <= set(trace.children(chat.name))
    assert chat.attributes["gen_ai.response.id"] == chunks[0].id
    assert chat.attributes["gen_ai.request.stream"] is True
    assert trace[CHAT].started <= chat.started <= chat.ended <= trace[CHAT].ended


async def test_responses_and_conversations(site: Site, collector: Collector) -> None:
    async with client(site) as openai:
        conversation = await openai.conversations.create()
        response = await openai.responses.create(model=MODEL, input=SECRET, conversation=conversation.id)
    trace = await collector.trace("POST /v1/responses")
    chat = trace[f"chat {MODEL}"]
    assert chat.attributes["gen_ai.conversation.id"] == conversation.id
    assert chat.attributes["gen_ai.usage.output_tokens"] == response.usage.output_tokens
    assert "store" in trace.children(chat.name)


async def test_completions(site: Site, collector: Collector) -> None:
    await post(site, "/v1/completions", prompt=[SECRET, "b"], n=2, max_tokens=9, model=MODEL)
    trace = await collector.trace("POST /v1/completions")
    completion = trace[f"text_completion {MODEL}"]
    assert completion.attributes["gen_ai.response.finish_reasons"] == ["stop"] * 4
    assert completion.attributes["gen_ai.usage.cache_read.input_tokens"] == 6  # two prompts
    assert completion.attributes["gen_ai.request.choice.count"] == 4
    assert trace.children(completion.name).count("decode") == 4
    assert "store" in trace.children(completion.name)


async def test_a_tool_call_is_a_span_without_its_arguments(
    new_server: NewSite, traced: Mapping[str, str], engine: FakeEngine, collector: Collector
) -> None:
    site = await new_server(environment=traced, model={"name": MODEL, "preload": False, "dialect": "hermes"})
    engine.script = ('<tool_call>{"name": "look_up", "arguments": {"term": "secret"}}</tool_call>',)
    engine.finish = "stop"
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
    answer = await post(site, "/v1/chat/completions", messages=USER, tools=tools, model=MODEL)
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    trace = await collector.trace(CHAT)
    assert trace["tool_call look_up"].attributes == {
        "gen_ai.tool.name": "look_up",
        "gen_ai.tool.call.id": call["id"],
        "gen_ai.tool.type": "function",
    }
    assert trace[f"chat {MODEL}"].attributes["gen_ai.response.finish_reasons"] == ["tool_calls"]


class Embedder:
    device, dtype, dimensions, max_length = "fake", "float32", 2, 8
    prompts = TextPrompts()

    def __init__(self) -> None:
        self.tokenizer = Letters()

    def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def embed(self, inputs: Sequence[Sequence[int]], owner: str) -> Embeddings:
        return Embeddings(bytes(4 * self.dimensions * len(inputs)), self.dimensions)

    def stats(self) -> EngineStats:
        return EngineStats()


class Letters:
    all_special_ids: Sequence[int] = ()

    def __len__(self) -> int:
        return 256

    def __call__(self, text: Sequence[str], **options: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(each.encode()) for each in text]}


async def test_embeddings(new_server: NewSite, traced: Mapping[str, str], collector: Collector) -> None:
    site = await new_server(environment=traced, build=lambda kind, **options: Embedder())
    body = {"input": ["abc", "de"], "model": "fake-embedding", "encoding_format": "base64"}
    await post(site, "/v1/embeddings", **body)
    trace = await collector.trace("POST /v1/embeddings")
    embeddings = trace["embeddings fake-embedding"]
    assert embeddings.attributes == {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "parley",
        "gen_ai.request.model": "fake-embedding",
        "gen_ai.request.encoding_formats": ["base64"],
        "gen_ai.response.model": "fake-embedding",
        "gen_ai.usage.input_tokens": 5,
    }
    assert trace.children(embeddings.name) == ["store"]


async def test_each_line_of_a_batch_has_a_trace(site: Site, collector: Collector) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": USER}}
    upload = {"file": ("in.jsonl", json.dumps(line))}
    file = (await site.client.post("/v1/files", files=upload, data={"purpose": "batch"})).json()["id"]
    await post(site, "/v1/batches", input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h")
    trace = await collector.trace("batch /v1/chat/completions")
    assert trace["batch /v1/chat/completions"].parent == ""
    assert trace.children("batch /v1/chat/completions") == [f"chat {MODEL}"]
    assert "decode" in trace.children(f"chat {MODEL}")


async def test_the_trace_goes_on_in_an_upstream(
    new_server: NewSite, traced: Mapping[str, str], engine: FakeEngine, collector: Collector
) -> None:
    tokenizer = PieceTokenizer()
    async with ScriptedServer(engine, tokenizer).serving() as server:

        def build(kind: str, **options: object) -> RemoteEngine:
            model = ModelInfo(tokenizer, frozenset(), 4096, len(tokenizer))
            return RemoteEngine(model, Router([Upstream(UpstreamAddress(server.url), timeout_s=60)]))

        site = await new_server(environment=traced, build=build)
        await post(site, "/v1/chat/completions", messages=USER, model=MODEL, max_tokens=9)
        trace = await collector.trace(CHAT)
        upstream = trace["POST /v1/completions"]
        assert "POST /v1/completions" in trace.children(f"chat {MODEL}")
        assert upstream.kind == "client"
        assert upstream.attributes["http.response.status_code"] == 200
        assert (upstream.attributes["server.address"], upstream.attributes["server.port"]) == ("127.0.0.1", server.port)
        sent = server.requests[-1].headers["traceparent"]
        assert sent == f"00-{trace[CHAT].trace_id}-{upstream.id}-{sent[-2:]}"
        assert int(sent[-2:], 16) & 1  # sampled


async def test_no_text_is_recorded(site: Site, collector: Collector) -> None:
    await post(site, "/v1/chat/completions", messages=USER, store=True, user=SECRET, stop=[SECRET])
    await collector.trace(CHAT)
    assert SECRET not in repr(collector.spans)
    assert "world" not in repr(collector.spans)


async def test_texts_are_recorded_where_the_operator_asks_for_them(
    new_server: NewSite, traced: Mapping[str, str], collector: Collector
) -> None:
    site = await new_server(environment={**traced, "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"})
    await post(site, "/v1/chat/completions", messages=USER, model=MODEL)
    chat = (await collector.trace(CHAT))[f"chat {MODEL}"]
    assert json.loads(chat.attributes["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": SECRET}]}
    ]
    assert json.loads(chat.attributes["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "Hello, world!"}], "finish_reason": "stop"}
    ]


async def test_the_trace_of_the_caller_is_continued(site: Site, collector: Collector) -> None:
    headers = {"traceparent": PARENT}
    answer = await site.client.post("/v1/chat/completions", json={"messages": USER}, headers=headers)
    assert answer.status_code == 200
    root = (await collector.trace(CHAT))[CHAT]
    assert (root.trace_id, root.parent) == tuple(PARENT.split("-")[1:3])


@pytest.mark.parametrize("format", ["json", "text"])
async def test_log_lines_name_the_trace(
    format: str, new_server: NewSite, traced: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    site = await new_server(environment=traced, log={"format": format})
    await site.client.post("/v1/chat/completions", json={"messages": USER}, headers={"traceparent": PARENT})
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "/v1/chat/completions 200" in line]
    trace = PARENT.split("-")[1]
    if format == "json":
        assert json.loads(line)["trace_id"] == trace
    else:
        assert line.endswith(f" trace_id={trace}")


async def test_refusals_and_failures_are_marked(site: Site, engine: FakeEngine, collector: Collector) -> None:
    engine.refusal = Overloaded("full")
    await site.client.post("/v1/chat/completions", json={"messages": USER})
    trace = await collector.trace(CHAT)
    assert trace["chat"].attributes["error.type"] == "Overloaded"
    assert trace["chat"].is_error
    assert trace[CHAT].attributes["http.response.status_code"] == 429
    assert not trace[CHAT].is_error  # the caller's, by the conventions


async def test_an_engine_that_fails_is_an_error_of_the_server(
    site: Site, engine: FakeEngine, collector: Collector
) -> None:
    engine.script = (RuntimeError("broken"),)
    answer = await site.client.post("/v1/chat/completions", json={"messages": USER, "model": MODEL})
    assert answer.status_code == 500
    trace = await collector.trace(CHAT)
    assert trace[CHAT].is_error
    assert trace[CHAT].attributes["http.response.status_code"] == 500
    assert trace[f"chat {MODEL}"].is_error


async def test_the_service_has_the_operators_name(
    new_server: NewSite, traced: Mapping[str, str], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chat-of-the-house")
    site = await new_server(environment=traced)
    assert (await site.client.get("/v1/models")).status_code == 200
    assert (await collector.trace("GET /v1/models")).spans[0].service == "chat-of-the-house"


async def test_probes_are_not_traced(site: Site, collector: Collector) -> None:
    for path in ("/health", "/metrics", "/v1/models"):
        assert (await site.client.get(path)).status_code == 200
    await collector.trace("GET /v1/models")
    assert [span.name for span in collector.spans] == ["GET /v1/models"]


@pytest.mark.parametrize("variables", [{"OTEL_TRACES_SAMPLER": "always_off"}, {}])
async def test_a_trace_that_is_not_sampled_is_not_sent(
    variables: dict[str, str],
    new_server: NewSite,
    traced: Mapping[str, str],
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the sampler, or by the caller's flag."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    site = await new_server(environment=traced)
    headers = {} if variables else {"traceparent": PARENT[:-2] + "00"}
    answer = await site.client.post("/v1/chat/completions", json={"messages": USER}, headers=headers)
    assert answer.status_code == 200
    monkeypatch.delenv("OTEL_TRACES_SAMPLER", raising=False)
    other = await new_server(environment=traced)  # whose spans are sent afterwards
    assert (await other.client.get("/v1/models")).status_code == 200
    await collector.trace("GET /v1/models")
    assert [span.name for span in collector.spans] == ["GET /v1/models"]


async def test_nothing_is_current_without_a_tracer(new_server: NewSite) -> None:
    site = await new_server()
    await post(site, "/v1/chat/completions", messages=USER)
    assert not current().is_recording


# --- what asks for traces ---

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {**ENDPOINT, "OTEL_SDK_DISABLED": "true"},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_no_traces(variables: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    assert tracer_of(variables) is NO_TRACER
    assert caplog.text == ""


@pytest.mark.parametrize(
    "variables",
    [
        ENDPOINT,
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"},
        {"OTEL_TRACES_EXPORTER": "console"},
        {"OTEL_TRACES_EXPORTER": "otlp"},
    ],
)
def test_traces(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracer = tracer_of(variables)
    assert tracer is not NO_TRACER
    tracer.shut_down()


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is 'zipkin': otlp, console or none"),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "'http/json': http/protobuf or grpc"),
        ({**ENDPOINT, "OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, "max_queue_size must be a positive integer"),
    ],
)
def test_what_cannot_be_had_is_said(
    variables: dict[str, str], reason: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert tracer_of(variables) is NO_TRACER
    assert f"requests are not traced: {reason}" in caplog.text or reason in caplog.text


class Unreachable(SpanExporter):
    """A collector that never answers."""

    def __init__(self) -> None:
        self.called, self.end = threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.called.set()
        self.end.wait()
        return SpanExportResult.FAILURE


def test_a_collector_that_does_not_answer_holds_no_shutdown_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.common.opentelemetry_tracer.SHUT_DOWN_S", 0.01)
    exporter = Unreachable()
    tracer = OpenTelemetryTracer([exporter])
    tracer.root("a request", {}, {}, kind="server").end()
    tracer.shut_down()
    assert exporter.called.wait(60)
    assert not exporter.end.is_set()
    exporter.end.set()


async def test_a_missing_extra_is_said(
    new_server: NewSite, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert tracer_of(ENDPOINT) is NO_TRACER
    assert "parley[otel]" in caplog.text
    site = await new_server(environment=ENDPOINT)
    await post(site, "/v1/chat/completions", messages=USER)


async def test_without_traces_the_sdk_is_not_imported() -> None:
    code = "import sys, app.main; sys.exit('opentelemetry.sdk' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0
