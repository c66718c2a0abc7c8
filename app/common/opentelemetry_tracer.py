"""OpenTelemetry's SDK as the tracer. It reads the standard variables of the environment itself.

Only imported where traces are wanted: the SDK is an extra.
"""

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from os import environ
from threading import Thread

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.sdk.environment_variables import OTEL_BSP_SCHEDULE_DELAY
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span as SdkSpan
from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace import Tracer as SdkTracer

from services.tracing import NONE, Attributes, Kind, Span

NAME = "parley"
FLUSH_MS = 2000  # unless OTEL_BSP_SCHEDULE_DELAY says otherwise: nobody waits for a trace while looking for a fault
SHUT_DOWN_S = 3.0

KINDS: Mapping[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
}


class OpenTelemetryTracer:
    """`exporters`: each is sent every span."""

    def __init__(self, exporters: Iterable[SpanExporter], *, records_content: bool = False) -> None:
        # the app shuts it down itself, before its process exits
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        delay = None if environ.get(OTEL_BSP_SCHEDULE_DELAY) else FLUSH_MS
        for exporter in exporters:
            self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=delay))
        self._tracer = self._provider.get_tracer(NAME, version(NAME))
        self._records_content = records_content

    def root(self, name: str, headers: Mapping[str, str], attributes: Attributes, *, kind: Kind) -> Span:
        context = propagate.extract(headers)
        span = self._tracer.start_span(name, context, KINDS[kind], attributes)
        return _Span(self._tracer, span, context, records_content=self._records_content)

    def shut_down(self) -> None:
        # in a thread of its own, which nobody waits for: the exporter tries for long to reach a collector that is away
        ending = Thread(target=self._provider.shutdown, name="last traces", daemon=True)
        ending.start()
        ending.join(SHUT_DOWN_S)


class _Span:
    def __init__(self, tracer: SdkTracer, span: SdkSpan, context: Context, *, records_content: bool) -> None:
        self._tracer = tracer
        self._span = span
        self._context = set_span_in_context(span, context)
        self.is_recording = span.is_recording()  # as it began: afterwards the SDK says no
        self.records_content = records_content and self.is_recording

    @property
    def trace_id(self) -> str:
        return format_trace_id(self._span.get_span_context().trace_id)

    def child(
        self, name: str, attributes: Attributes = NONE, *, kind: Kind = "internal", started: int | None = None
    ) -> Span:
        if not self.is_recording:  # sampling decides on whole traces
            return self
        span = self._tracer.start_span(name, self._context, KINDS[kind], attributes, start_time=started)
        return _Span(self._tracer, span, self._context, records_content=self.records_content)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def fail(self, error: str) -> None:
        self._span.set_attribute("error.type", error)
        self._span.set_status(Status(StatusCode.ERROR))

    def end(self, at: int | None = None) -> None:
        self._span.end(at)

    def headers(self) -> dict[str, str]:
        found: dict[str, str] = {}
        propagate.inject(found, self._context)
        return found


def _resource() -> Resource:
    """OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come before our own names."""
    given = Resource.create()
    is_named = not str(given.attributes[SERVICE_NAME]).startswith("unknown_service")
    found = Resource({SERVICE_VERSION: version(NAME)}).merge(given)
    return found if is_named else found.merge(Resource({SERVICE_NAME: NAME}))
