"""Whether requests are traced and where traces go, by OpenTelemetry's standard variables of the environment."""

import logging
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from services.tracing import NO_TRACER, Tracer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

logger = logging.getLogger(__name__)

DISABLED, EXPORTER = "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
CONTENT_VALUES = {
    **dict.fromkeys(("true", "span_only", "span_and_event"), True),
    **dict.fromkeys(("", "false", "no_content"), False),
}

HTTP = "http/protobuf"
# package and class of each OTLP protocol; that of gRPC is not in the extra
OTLP = {
    HTTP: ("opentelemetry-exporter-otlp-proto-http", "opentelemetry.exporter.otlp.proto.http.trace_exporter"),
    "grpc": ("opentelemetry-exporter-otlp-proto-grpc", "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"),
}


class NotTraced(Exception):
    """Traces were asked for; the message says why there are none."""


def tracer_of(environment: Mapping[str, str]) -> Tracer:
    """What asks for traces and cannot be had is logged: a server without traces is better than none."""
    try:
        exporters = [make() for make in _exporters(environment)]
        if not exporters:
            return NO_TRACER
        from app.common.opentelemetry_tracer import OpenTelemetryTracer

        tracer = OpenTelemetryTracer(exporters, records_content=_records_content(environment))
    except (NotTraced, ValueError) as error:  # the SDK's own is a ValueError
        logger.warning("requests are not traced: %s", error)
        return NO_TRACER
    logger.info("requests are traced")
    return tracer


def _exporters(environment: Mapping[str, str]) -> Iterator[Callable[[], "SpanExporter"]]:
    if environment.get(DISABLED, "").strip().lower() == "true":
        return
    default = "otlp" if any(environment.get(name) for name in ENDPOINTS) else "none"
    for name in (environment.get(EXPORTER) or default).split(","):
        match name.strip().lower():
            case "none":
                pass
            case "otlp":
                yield _otlp(environment)
            case "console":
                yield _found("opentelemetry-sdk", "opentelemetry.sdk.trace.export", "ConsoleSpanExporter")
            case other:
                raise NotTraced(f"{EXPORTER} is {other!r}: otlp, console or none")


def _otlp(environment: Mapping[str, str]) -> Callable[[], "SpanExporter"]:
    name, protocol = next(((each, environment[each]) for each in PROTOCOLS if environment.get(each)), ("", HTTP))
    if protocol not in OTLP:
        raise NotTraced(f"{name} is {protocol!r}: {' or '.join(OTLP)}")
    return _found(*OTLP[protocol], "OTLPSpanExporter")


def _found(package: str, module: str, name: str) -> Callable[[], "SpanExporter"]:
    try:
        found: Callable[[], SpanExporter] = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        extra = "" if "grpc" in package else ", or parley[otel]"
        raise NotTraced(f"the package {package} is missing: pip install {package}{extra}") from error
    return found


def _records_content(environment: Mapping[str, str]) -> bool:
    value = environment.get(CONTENT, "").strip().lower()
    if value not in CONTENT_VALUES:
        logger.warning("%s is %r: prompts and answers are not recorded; true records them", CONTENT, value)
    return CONTENT_VALUES.get(value, False)
