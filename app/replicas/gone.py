"""What a client is told whose replica is gone: as a whole answer, or as the last event of a stream."""

from dataclasses import dataclass

import orjson

MESSAGE = "The process that answered is gone"
ERROR = {"message": MESSAGE, "type": "service_unavailable_error", "param": None, "code": None}
REFUSAL = orjson.dumps({"error": ERROR})


@dataclass(frozen=True, slots=True)
class Begun:
    """An answer of which the head was sent."""

    path: str
    content_type: str
    is_chunked: bool


def last_bytes(begun: Begun | None) -> bytes:
    """`begun` None: nothing was sent. Empty: the client notices by the end of the connection."""
    if begun is None:
        head = f"Content-Type: application/json\r\nContent-Length: {len(REFUSAL)}\r\nRetry-After: 1\r\n"
        return f"HTTP/1.1 503 Service Unavailable\r\n{head}Connection: close\r\n\r\n".encode() + REFUSAL
    event = last_event(begun)
    if not event or not begun.is_chunked:
        return event
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)


def last_event(begun: Begun) -> bytes:
    """Empty where the answer is no stream."""
    if begun.content_type.startswith("application/x-ndjson"):
        return orjson.dumps({"error": MESSAGE}) + b"\n"
    if not begun.content_type.startswith("text/event-stream"):
        return b""
    if begun.path.endswith("/messages"):
        error = {"type": "error", "error": {"type": "api_error", "message": MESSAGE}}
        return b"event: error\ndata: " + orjson.dumps(error) + b"\n\n"
    if "/responses" in begun.path:
        failure = {"type": "error", "code": "server_error", "message": MESSAGE, "param": None}
        return b"event: error\ndata: " + orjson.dumps(failure) + b"\n\n"
    name = b"event: error\n" if begun.path.endswith("/chat/stream") else b""
    return name + b"data: " + REFUSAL + b"\n\n"
