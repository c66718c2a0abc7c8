"""How a spec's stream looks on the wire, and its errors with it."""

from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import BaseModel

from app.common.errors import ErrorBody
from app.common.sse import Framing

Payload = BaseModel | dict[str, Any] | str


@dataclass(frozen=True, slots=True)
class NamedEvent:
    """An item of a stream of server-sent events with a name of its own."""

    event: str
    data: Payload


def to_json(item: Payload) -> bytes:
    return item.model_dump_json().encode() if isinstance(item, BaseModel) else orjson.dumps(item)


def server_sent(error_body: ErrorBody, *, keepalive: bytes = b": keep-alive\n\n") -> Framing[Payload | NamedEvent]:
    """Server-sent events; an error is the last, named so."""

    def event(item: Payload | NamedEvent) -> bytes:
        if isinstance(item, NamedEvent):
            return b"event: %b\ndata: %b\n\n" % (item.event.encode(), to_json(item.data))
        return b"data: %b\n\n" % to_json(item)

    return Framing(event, lambda problem: event(NamedEvent("error", error_body(problem))), keepalive=keepalive)


def json_lines(error_body: ErrorBody) -> Framing[Payload | NamedEvent]:
    """One JSON value a line. Silence is spaces: before a value they mean nothing."""

    def line(item: Payload | NamedEvent) -> bytes:
        return to_json(item.data if isinstance(item, NamedEvent) else item) + b"\n"

    return Framing(line, lambda problem: line(error_body(problem)), keepalive=b" ", media_type="application/x-ndjson")
