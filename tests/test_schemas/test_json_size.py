"""What is counted of a JSON text, and what is not."""

import pytest

from schemas import json_size


@pytest.mark.parametrize(
    "text",
    [
        b'"' + b"[a], {b}, " * 1_000_000 + b'"',
        b'{"prompt":"' + rb"\"quoted\", \\[ " * 100_000 + b'"}',
        b'{"a":"' + b"\\u00e9" * 400_000 + b'"}',
        b"[" + b"1234," * 500_000 + b"1]",
        b"[" + b'"a",' * 100_000 + b'"a"]',
        b'{"open":"' + b"," * 1_000_000,
        b'"' + b"\\",
        b"",
    ],
    ids=["prose", "escapes", "accents", "numbers", "strings", "open", "half an escape", "nothing"],
)
def test_enough(text: bytes) -> None:
    json_size.check(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"[" + b"[]," * 200_000 + b"0]", "150000 strings, objects and lists"),
        (b"[" + b"{}," * 200_000 + b"0]", "150000 strings, objects and lists"),
        (b"[" + b'"a",' * 200_000 + b"0]", "150000 strings, objects and lists"),
        (b"[" + b"1," * 700_000 + b"0]", "600000 values"),
        (b'"' + b"\\n" * 3_100_000 + b'"', "3000000 escapes"),
    ],
)
def test_too_much(text: bytes, why: str) -> None:
    with pytest.raises(json_size.TooMuch, match=f"has more than {why}"):
        json_size.check(text)


@pytest.mark.parametrize("window", range(2, 9))
def test_a_string_ends_where_it_ends_wherever_a_window_does(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = rb'{"a\"\\":["\\\\\",[",{"":"\""}]}'
    monkeypatch.setattr(json_size, "WINDOW", window)
    found = [text[start:end] for start, end in json_size.between_strings(text)]
    assert b"".join(found) == b"{:[,{:}]}"
