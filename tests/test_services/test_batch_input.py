"""The input file of a batch: what is wrong in it, line by line."""

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.batch_schema import BatchError
from services.batches.input_file import CHUNK_BYTES, Checked, InputLimits, Place, check, read_chunk

URL = "/v1/chat/completions"
LIMITS = InputLimits(max_requests=20, max_line_bytes=2000)
GOOD = {"custom_id": "a", "method": "POST", "url": URL, "body": {"model": "m"}}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


def checked(folder: Path, *lines: Any, limits: InputLimits = LIMITS) -> Checked:
    path = folder / "in.jsonl"
    path.write_bytes(b"\n".join(each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines))
    with path.open("rb") as file:
        return check(file, URL, limits)


def places(errors: list[BatchError]) -> list[tuple[str, str | None, int | None]]:
    return [(each.code, each.param, each.line) for each in errors]


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b"\xff", "invalid_json_line", None),
        (b'{"a": NaN}', "invalid_json_line", None),
        (b"{" + b" " * 3000 + b"}", "invalid_request", None),
        (without("custom_id"), "missing_required_parameter", "custom_id"),
        (without("method"), "missing_required_parameter", "method"),
        (without("body") | {"body": None}, "missing_required_parameter", "body"),
        (GOOD, "duplicate_custom_id", "custom_id"),
        (GOOD | {"custom_id": 7}, "invalid_custom_id", "custom_id"),
        (GOOD | {"custom_id": ""}, "invalid_custom_id", "custom_id"),
        (GOOD | {"custom_id": "b", "method": "GET"}, "invalid_method", "method"),
        (GOOD | {"custom_id": "b", "url": "/v1/completions"}, "url_mismatch", "url"),
        (GOOD | {"custom_id": "b", "body": "text"}, "invalid_request", "body"),
        (GOOD | {"custom_id": "b", "body": {"model": []}}, "invalid_request", "body.model"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, line: Any, code: str, param: str | None) -> None:
    found = checked(tmp_path, GOOD, b" \r", line, GOOD | {"custom_id": "z"})
    assert (found.total, places(found.errors)) == (3, [(code, param, 3)])


def test_limits_of_a_file(tmp_path: Path) -> None:
    many = [GOOD | {"custom_id": str(number)} for number in range(21)]
    assert places(checked(tmp_path, *many[1:]).errors) == []
    assert places(checked(tmp_path, *many).errors) == [("too_many_tasks", None, 21)]
    assert places(checked(tmp_path, b"", b" ").errors) == [("empty_file", None, None)]
    assert len(checked(tmp_path, *[b"{"] * 300, limits=InputLimits(1000, 10)).errors) == 100


def test_models_are_found_with_their_first_lines(tmp_path: Path) -> None:
    lines = [GOOD | {"custom_id": each, "body": {"model": each}} for each in ("m", "n")]
    assert checked(tmp_path, *lines, GOOD | {"custom_id": "x", "body": {}}).models == {"m": 1, "n": 2, None: 3}


def test_a_long_file_is_read_in_chunks(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    text = b"x" * 1900
    path.write_bytes(b"\n".join([b"", *[text] * 400, text * 200, b"last"]))
    place: Place | None = Place()
    lines = []
    with path.open("rb") as file:
        while place:
            chunk = read_chunk(file, place, LIMITS)
            assert sum(len(each.text) for each in chunk.lines) < CHUNK_BYTES + 2 * LIMITS.max_line_bytes
            lines += chunk.lines
            place = chunk.next
    assert [each.number for each in lines] == list(range(2, 404))
    assert (lines[-2].text[:1000], len(lines[-2].text) > LIMITS.max_line_bytes, lines[-1].text) == (
        text[:1000],
        True,
        b"last",
    )
