"""How a spec's stream looks on the wire, and its errors with it."""

from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import BaseModel

from app.common.errors import ErrorBody
from app.common.sse import Framing

Item = BaseModel | dict[str, Any] | str


@dataclass(frozen=True, slots=True)
class Named:
    """An item of a stream of server-sent events with a name of its own."""

    event: str
    data: Item


def to_json(item: Item) -> bytes:
    return item.model_dump_json().encode() if isinstance(item, BaseModel) else orjson.dumps(item)


def server_sent(error_body: ErrorBody, *, silence: bytes = b": keep-alive\n\n") -> Framing[Item | Named]:
    """Server-sent events; an error is the last, named so."""

    def event(item: Item | Named) -> bytes:
        if isinstance(item, Named):
            return b"event: %b\ndata: %b\n\n" % (item.event.encode(), to_json(item.data))
        return b"data: %b\n\n" % to_json(item)

    return Framing(event, lambda problem: event(Named("error", error_body(problem))), silence=silence)


def json_lines(error_body: ErrorBody) -> Framing[Item | Named]:
    """One JSON value a line. Silence is spaces: before a value they mean nothing."""

    def line(item: Item | Named) -> bytes:
        return to_json(item.data if isinstance(item, Named) else item) + b"\n"

    return Framing(line, lambda problem: line(error_body(problem)), silence=b" ", media_type="application/x-ndjson")
