"""Grammars as they are written, before anything compiles them."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine.base import GrammarSpec
from services.engine.grammar.lark import HEAD, MAX_MULTIPLE, MAX_PROPERTIES, lark

MARKERS = {"<tool>": 7, "[CALL]": 8}


def written(source: str, before: str = "") -> str:
    return lark(GrammarSpec("lark", source, before=before), MARKERS).removeprefix(HEAD)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('start: <tool> "a"', 'start: <[7]> "a"'),
        ("start: <other>", 'start: "<other>"'),
        ('start: <"[CALL]">', "start: <[8]>"),
        ('start: <"a \\"b\\"">', 'start: "a \\"b\\""'),
        ("start: <[128-130]> <[*]>", "start: <[128-130]> <[*]>"),
        ('start: "<tool>" // <tool>\n# <tool>', 'start: "<tool>" // <tool>\n# <tool>'),
        (r"start: /<tool>\/<tool>/ <tool>", r"start: /<tool>\/<tool>/ <[7]>"),
        (r'start: "\"<tool>" <tool>', r'start: "\"<tool>" <[7]>'),
        ("start: ...<tool>", "start: before-start-0\nbefore-start-0: /(?s:.*)/ <[7]>"),
        ("start: ...<other>", 'start: before-start-0\nbefore-start-0[suffix="<other>"]: /(?s:.*)/'),
        ('start: <"a[CALL]b">', 'start: "a" <[8]> "b"'),
        (
            'start: ...<"a[CALL]">',
            'start: before-start-0\nbefore-start-0: BEFORE-START-0-LEAD <[8]>\nBEFORE-START-0-LEAD: /(?s:.*)/ "a"',
        ),
        (
            "start: .../[a-z]*/ <tool>",
            "start: before-start-0\nbefore-start-0: BEFORE-START-0 <[7]>\n"
            "BEFORE-START-0: /[a-z]*/ & ~/(?s:.*)<tool>(?s:.*)/",
        ),
    ],
)
def test_a_marker_is_a_token_where_the_tokenizer_has_it_else_its_text(source: str, expected: str) -> None:
    assert written(source) == expected


def test_what_comes_after_a_marker_keeps_its_own_words() -> None:
    text = written('start: restart "start" start\nrestart: "a" %json {"const": "start"}', before="...<tool>")

    first, _, rest = text.partition("\nthe-answer: ")
    assert first.startswith("start: before-start-0 the-answer\n")
    assert rest.startswith('restart "start" the-answer\nrestart: "a" %json {"const": "start"')


def test_json_is_kept_on_one_line_whatever_a_schema_asks() -> None:
    text = written('start: %json {"x-guidance": {"whitespace_flexible": true, "lenient": true}, "type": "object"} "b"')

    schema, end = json.JSONDecoder().raw_decode(text, len("start: %json "))
    assert text[end:] == ' "b"'
    assert schema["type"] == "object"
    assert schema["x-guidance"] | {"whitespace_flexible": False, "lenient": True} == schema["x-guidance"]


def test_integers_without_bounds_stay_exact() -> None:
    free, bound = {"type": "integer"}, {"type": "integer", "minimum": 0}
    schema = {"properties": {"a": free, "b": {"items": bound}}, "const": free, "x-guidance": {}}
    text = lark(GrammarSpec("json_schema", json.dumps(schema)), {})

    kept, _ = json.JSONDecoder().raw_decode(text.removeprefix(HEAD), len("start: %json "))
    bounds = {"minimum": -(2**53) + 1, "maximum": 2**53 - 1}
    assert kept["properties"] == {"a": free | bounds, "b": {"items": bound}}
    assert kept["const"] == free


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"properties": {f"p{i}": {} for i in range(MAX_PROPERTIES + 1)}}, "properties"),
        ({"type": "integer", "multipleOf": MAX_MULTIPLE + 1}, "multipleOf"),
        ({"allOf": [{"multipleOf": 997}, {"items": [{"multipleOf": 991}]}]}, "multipleOf"),
        ({"allOf": [{"multipleOf": 0.001}, {"multipleOf": 101}]}, "multipleOf"),
        ({"multipleOf": -1}, "multipleOf"),
    ],
)
@pytest.mark.parametrize("kind", ["json_schema", "lark"])
def test_what_would_take_too_long_is_refused(schema: dict[str, Any], why: str, kind: Any) -> None:
    source = json.dumps(schema) if kind == "json_schema" else f"start: %json {json.dumps(schema)}"
    with pytest.raises(ValueError, match=why):
        lark(GrammarSpec(kind, source), {})


@pytest.mark.parametrize("multiple", [True, "a", {"type": "string"}, 0.01, 100, 1e3])
def test_other_multiples_are_left_to_the_library(multiple: object) -> None:
    assert json.dumps(multiple) in lark(GrammarSpec("json_schema", json.dumps({"multipleOf": multiple})), {})


@pytest.mark.parametrize("source", ["root ::= (", "root ::= " + "(" * 5000, "::="])
def test_gbnf_that_cannot_be_read_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="GBNF"):
        written(source)


@given(st.text(alphabet='<>"\\/.{}%json start:\n#ab[]', max_size=60))
def test_any_text_is_written_or_refused(text: str) -> None:
    with suppress(ValueError):
        written(text, before="...<tool>")
