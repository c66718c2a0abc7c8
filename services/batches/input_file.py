"""The input file of a batch: JSON Lines, each line a request. Read in chunks, by functions for worker threads."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import orjson

from schemas import json_size
from schemas.batch_schema import BatchError

CHUNK_BYTES = 256 * 1024  # of lines that are read together
MAX_CUSTOM_ID = 512
MAX_ERRORS = 100  # that are reported


@dataclass(frozen=True, slots=True)
class InputLimits:
    max_requests: int
    max_line_bytes: int


@dataclass(frozen=True, slots=True)
class RawLine:
    number: int  # from 1
    text: bytes


@dataclass(frozen=True, slots=True)
class Line:
    """A valid one."""

    number: int
    custom_id: str
    body: dict[str, Any]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where the next line begins."""

    offset: int = 0
    number: int = 1


@dataclass(frozen=True, slots=True)
class Chunk:
    lines: list[RawLine]  # without blank ones
    next: Place | None  # None: the file ends here


@dataclass(slots=True)
class Checked:
    """What an input file has in it."""

    total: int = 0
    models: dict[str | None, int] = field(default_factory=dict)  # with the first line that names each
    errors: list[BatchError] = field(default_factory=list)


class LineError(ValueError):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param

    def at(self, line: int) -> BatchError:
        return BatchError(code=self.code, message=self.message, param=self.param, line=line)


def read_chunk(file: BinaryIO, place: Place, limits: InputLimits) -> Chunk:
    """Of a line that is longer than the limit, only so much that this is seen. Raises OSError."""
    lines: list[RawLine] = []
    number, size = place.number, 0
    file.seek(place.offset)
    while size < CHUNK_BYTES:
        text = file.readline(limits.max_line_bytes + 2)
        if not text:
            return Chunk(lines, None)
        size += len(text)
        while not text.endswith(b"\n") and (more := file.readline(CHUNK_BYTES)):
            text = text[: limits.max_line_bytes + 1] + more[-1:]
        if kept := text if len(text) > limits.max_line_bytes + 1 else text.strip():
            lines.append(RawLine(number, kept))
        number += 1
    return Chunk(lines, Place(file.tell(), number))


def check(file: BinaryIO, endpoint: str, limits: InputLimits) -> Checked:
    """Reads the whole file. Raises OSError."""
    checked, seen = Checked(), set[str]()
    for raw in _lines(file, limits):
        checked.total += 1
        if checked.total > limits.max_requests:
            message = f"The input file has more than {limits.max_requests} requests"
            checked.errors.append(BatchError(code="too_many_tasks", message=message, line=raw.number))
            break
        try:
            _check(parse(raw, endpoint, limits), seen, checked)
        except LineError as error:
            checked.errors.append(error.at(raw.number))
        if len(checked.errors) >= MAX_ERRORS:
            break
    if not checked.total:
        checked.errors.append(BatchError(code="empty_file", message="The input file has no requests"))
    return checked


def _lines(file: BinaryIO, limits: InputLimits) -> Iterator[RawLine]:
    place: Place | None = Place()
    while place:
        chunk = read_chunk(file, place, limits)
        yield from chunk.lines
        place = chunk.next


def _check(line: Line, seen: set[str], checked: Checked) -> None:
    if line.custom_id in seen:
        raise LineError("duplicate_custom_id", "An earlier line has the same custom_id", "custom_id")
    seen.add(line.custom_id)
    checked.models.setdefault(line.body.get("model"), line.number)


def parse(raw: RawLine, endpoint: str, limits: InputLimits) -> Line:
    """Raises LineError."""
    found = _object(raw, limits)
    if missing := next((name for name in ("custom_id", "method", "url", "body") if found.get(name) is None), None):
        raise LineError("missing_required_parameter", f"Missing required parameter: '{missing}'", missing)
    custom_id, body = found["custom_id"], found["body"]
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        raise LineError("invalid_custom_id", f"A custom_id is a text of 1 to {MAX_CUSTOM_ID} characters", "custom_id")
    if found["method"] != "POST":
        raise LineError("invalid_method", "The method must be POST", "method")
    if found["url"] != endpoint:
        raise LineError("url_mismatch", f"The URL must be the batch's endpoint, {endpoint}", "url")
    if not isinstance(body, dict):
        raise LineError("invalid_request", "The body must be a JSON object", "body")
    if not isinstance(body.get("model"), str | None):
        raise LineError("invalid_request", "The model must be a text", "body.model")
    return Line(raw.number, custom_id, body, len(raw.text))


def _object(raw: RawLine, limits: InputLimits) -> dict[str, Any]:
    if len(raw.text) > limits.max_line_bytes:
        raise LineError("invalid_request", f"A line has {limits.max_line_bytes} bytes at most")
    try:
        json_size.check(raw.text)
        found = orjson.loads(raw.text)
    except orjson.JSONDecodeError:
        raise LineError("invalid_json_line", "This line is not valid JSON") from None
    except json_size.TooMuch as error:
        raise LineError("invalid_request", f"The line {error}") from None
    if not isinstance(found, dict):
        raise LineError("invalid_json_line", "This line is not a JSON object")
    return found
