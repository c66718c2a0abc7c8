"""The key of a request, read from its first bytes: requests of one key begin alike and go to the same replica.

Affinity is only speed: with a shared database each replica gives the right answer to each request.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from services import affinity

HEADERS = (b"x-session-id", b"x-session-affinity")
CONTINUES = "previous_response_id"
FIELDS = ("conversation", CONTINUES, "prompt_cache_key")
FIELD = re.compile(rb'"(conversation|previous_response_id|prompt_cache_key)"\s*:\s*"([^"\\]{1,256})"')
BEGINNING = 2048  # bytes of a body that is not here as a whole


@dataclass(frozen=True, slots=True)
class Head:
    """The first bytes of a connection, as far as they have come."""

    method: bytes = b""
    path: bytes = b""
    headers: Mapping[bytes, bytes] | None = None  # None: not here as a whole
    body: bytes = b""
    is_complete: bool = False


def parse(data: bytes) -> Head:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return Head()
    lines = data[:end].split(b"\r\n")
    method, _, rest = lines[0].partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
    body = data[end + 4 :]
    length = headers.get(b"content-length", b"0")
    is_chunked = b"transfer-encoding" in headers
    is_complete = not is_chunked and length.isdigit() and len(body) >= int(length)
    return Head(method, path, headers, body, is_complete)


def key(head: Head) -> str | None:
    """As `services.affinity` has them. None: any replica will do."""
    if head.headers is None:
        return None
    for name in HEADERS:
        if value := head.headers.get(name):
            return affinity.of_session(value.decode("latin-1"))
    if head.method != b"POST" or not head.body:
        return None
    owner = head.headers.get(b"authorization", head.headers.get(b"x-api-key", b""))
    return _of_body(head, owner) if head.is_complete else _of_part(head.body, owner)


def _of_body(head: Head, owner: bytes) -> str | None:
    try:
        body = orjson.loads(head.body)
    except ValueError:
        return None
    if not isinstance(body, dict):
        return None
    for name in FIELDS:
        value = body.get(name)
        value = value.get("id") if isinstance(value, dict) else value
        if isinstance(value, str) and value:
            return _of_field(name, value, owner)
    beginning = list(_beginning(body))
    return affinity.key_of([owner, *beginning]) if beginning else None


def _of_part(body: bytes, owner: bytes) -> str:
    """Of a body that is not here as a whole."""
    if named := FIELD.search(body):
        return _of_field(named.group(1).decode(), named.group(2).decode(errors="replace"), owner)
    return affinity.key_of([owner, body[:BEGINNING]])


def _of_field(name: str, value: str, owner: bytes) -> str:
    return affinity.of_answer(value) if name == CONTINUES else affinity.key_of([owner, value])


def _beginning(body: Mapping[str, Any]) -> Iterator[bytes]:
    """System text and first user message: what all turns of a conversation have in common."""
    messages = body.get("messages") or body.get("input") or body.get("prompt") or ""
    yield from (orjson.dumps(body[name]) for name in ("system", "instructions") if body.get(name))
    for message in messages if isinstance(messages, list) else [messages]:
        if isinstance(message, dict) and message.get("role"):
            yield orjson.dumps(message.get("content"))
            if message["role"] == "user":
                return
        else:
            yield orjson.dumps(message)
            return
