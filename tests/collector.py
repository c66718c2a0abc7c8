"""A collector of OpenTelemetry: takes spans as OTLP over HTTP, in the protobuf messages of OpenTelemetry itself."""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Status

PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class CollectedSpan:
    name: str
    kind: str
    trace_id: str
    id: str
    parent: str  # empty: none
    started: int
    ended: int
    attributes: Mapping[str, Any]
    is_error: bool
    service: str

    @classmethod
    def of(cls, span: SpanMessage, resource: Mapping[str, Any]) -> "CollectedSpan":
        return cls(
            span.name,
            SpanMessage.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            _attributes(span.attributes),
            span.status.code == Status.STATUS_CODE_ERROR,
            resource["service.name"],
        )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs if isinstance(pair, KeyValue)}


def _value(value: AnyValue) -> Any:
    if (kind := value.WhichOneof("value")) == "array_value":
        return list(map(_value, value.array_value.values))
    return getattr(value, str(kind))


class Trace:
    """The spans of one request, by their names."""

    def __init__(self, spans: list[CollectedSpan]) -> None:
        self.spans = spans

    def __getitem__(self, name: str) -> CollectedSpan:
        (found,) = [span for span in self.spans if span.name == name]
        return found

    @property
    def names(self) -> list[str]:
        return sorted(span.name for span in self.spans)

    def children(self, name: str) -> list[str]:
        return sorted(span.name for span in self.spans if span.parent == self[name].id)


class Collector:
    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.spans: list[CollectedSpan] = []
        self._changed = threading.Condition()

    def receive(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._changed:
            for resource in request.resource_spans:
                about = _attributes(resource.resource.attributes)
                self.spans += [CollectedSpan.of(span, about) for scope in resource.scope_spans for span in scope.spans]
            self._changed.notify_all()

    async def trace(self, name: str) -> Trace:
        """That of the first span with this name and without a parent here, which ends after all others of its trace."""
        return await asyncio.to_thread(self._trace, name)

    def _trace(self, name: str) -> Trace:
        with self._changed:
            assert self._changed.wait_for(lambda: any(span.name == name for span in self.spans), PATIENCE_S), self.spans
            root = next(span for span in self.spans if span.name == name)
            return Trace([span for span in self.spans if span.trace_id == root.trace_id])


@pytest.fixture
def collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            found.receive(self.rfile.read(int(self.headers["Content-Length"])))
            body = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def traced(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """Variables of an environment in which the collector is named; the SDK reads those of the process itself."""
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "10"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables
