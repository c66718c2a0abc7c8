"""Gemma 4 and FunctionGemma: calls whose strings stand between marks, thoughts on a channel."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chat.formats import CHANNEL, FUNCTION_GEMMA, GEMMA, chat_format_of
from services.chat.formats.base import OutputFormat, ToolFormat
from services.chat.parsing.output_parser import answer_parser
from services.errors import InvalidRequest
from tests.test_services.test_output_parser import NAMES, Meaning, meaning
from tests.test_services.test_python_calls import accepted

FORMATS = {"gemma": GEMMA, "function-gemma": FUNCTION_GEMMA}
EACH = pytest.mark.parametrize("calls", FORMATS.values(), ids=FORMATS)


def read(calls: ToolFormat, text: str, **fields: Any) -> Meaning:
    format = OutputFormat(**{"tools": calls, "names": NAMES, **fields})
    whole = meaning(format, text)
    assert meaning(format, *text) == whole
    return whole


def test_templates() -> None:
    format = chat_format_of("{{ tools }}<|tool_call>call:f{}<tool_call|><|channel>thought\\n<channel|>")
    assert (format.tools, format.shows_tools, format.thinking) == (GEMMA, True, CHANNEL)
    assert chat_format_of("{{ tools }}<start_of_turn><start_function_call>").tools is FUNCTION_GEMMA


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('city:<|"|>Paris<|"|>,days:3', {"city": "Paris", "days": 3}),
        ('a:<|"|>"quoted", {x}\n\\n<|"|>, b: true ,c:null', {"a": '"quoted", {x}\n\\n', "b": True, "c": None}),
        ('a:[1,<|"|>x<|"|>,[]],b:{c:{d:<|"|><|"|>}}', {"a": [1, "x", []], "b": {"c": {"d": ""}}}),
        ('<|"|>a b<|"|>:1,c d:-2.5e3', {"a b": 1, "c d": -2.5e3}),
        ('a:"plain \\"one\\"",b:None', {"a": 'plain "one"', "b": None}),
        ("", {}),
    ],
)
def test_arguments(text: str, expected: dict[str, object]) -> None:
    for calls in FORMATS.values():
        written = text.replace('<|"|>', calls.quote)
        ((name, found),) = read(calls, f"{calls.begin}call:f{{{written}}}{calls.end}").calls
        assert (name, json.loads(found)) == ("f", expected)


@EACH
def test_calls_and_text(calls: ToolFormat) -> None:
    two = calls.write([("f", "{}"), ("get_weather", '{"a": 1}')])
    called = (("f", "{}"), ("get_weather", '{"a": 1}'))
    assert read(calls, f"Look. {two}") == Meaning("Look.", called)
    assert read(calls, f"{two}\nDone.") == Meaning("Done.", called)
    assert read(calls, f"{calls.marker}call f{{}}{calls.end}").calls == (("f", "{}"),)
    for text in (calls.marker, f"{calls.marker}call:other{{}}", f"a {calls.marker[:-3]}", "call:f{}"):
        assert read(calls, text) == Meaning(text)


@pytest.mark.parametrize("calls", [GEMMA, FUNCTION_GEMMA])
def test_nothing_follows_where_the_results_are_to_come(calls: Any) -> None:
    text = calls.write([("f", "{}")]) + calls.stop
    assert read(calls, f"{text}response:f{{}}") == Meaning(calls=(("f", "{}"),))
    parser = answer_parser(OutputFormat(tools=calls, names=NAMES))
    parser.feed(text)
    assert parser.is_over


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|channel>thought\nHm.\n<channel|>Hello", Meaning("Hello", reasoning="Hm.")),
        ("<|channel>thought\n<channel|>Hello", Meaning("Hello")),
        ("<|channel>thoughtful<channel|>Hello", Meaning("Hello", reasoning="thoughtful")),
        ("<|channel>Hm.<channel|>\nHello", Meaning("Hello", reasoning="Hm.")),
        ("<|channel>thou", Meaning(reasoning="thou")),
        (
            '<|channel>thought\nHm.<channel|><|tool_call>call:f{a:<|"|>b<|"|>}<tool_call|>',
            Meaning(calls=(("f", '{"a": "b"}'),), reasoning="Hm."),
        ),
    ],
)
def test_thoughts(text: str, expected: Meaning) -> None:
    assert read(GEMMA, text, thinking=CHANNEL) == expected


TEXTS = st.text(st.characters(codec="utf-8"))
SCALARS = TEXTS | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(SCALARS, lambda each: st.lists(each) | st.dictionaries(TEXTS, each), max_leaves=8)


def pieces(text: str, cuts: list[int]) -> Iterator[str]:
    places = [0, *sorted({cut for cut in cuts if 0 < cut < len(text)}), len(text)]
    yield from (text[start:end] for start, end in pairwise(places))


@EACH
@given(made=st.dictionaries(TEXTS, VALUES), cuts=st.lists(st.integers(0, 300)))
def test_arguments_come_back_however_they_are_cut(calls: ToolFormat, made: dict[str, Any], cuts: list[int]) -> None:
    text = calls.write([("f", json.dumps(made)), ("get_weather", "{}")])
    found = meaning(OutputFormat(tools=calls, names=NAMES), *pieces(text, cuts))
    assert found.text == ""
    assert [(name, json.loads(each)) for name, each in found.calls] == [("f", made), ("get_weather", {})]


@EACH
@given(text=st.text(st.sampled_from('<|tol_ca>:{}",start\n 1')) | st.text())
def test_text_that_is_no_call_is_content(calls: ToolFormat, text: str) -> None:
    found = meaning(OutputFormat(tools=calls), text).text
    assert "".join(found.split()) == "".join(text.split())


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "pattern": "^[A-ZÖa-zö]+$"},
        "days": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 7}, {"type": "null"}]},
        "kind": {"enum": ["a", "b", True]},
        "points": {"type": "array", "items": {"$ref": "#/$defs/point"}, "minItems": 1, "maxItems": 2},
        "deep": {"type": "boolean"},
        "tree": {"$ref": "#/$defs/tree"},
        "free": {"type": "object"},
        "any": {},
    },
    "required": ["city"],
    "$defs": {
        "point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
        "tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}},
    },
}
RIGHT: list[dict[str, Any]] = [
    {"city": "Köln"},
    {"city": "Köln", "days": None, "kind": True, "points": [{"x": 1.5}, {"x": -2}], "deep": False},
    {"city": "a", "days": 3, "kind": "b", "tree": {"left": {"left": {}}}, "free": {"a": [1, "b"]}, "any": [None, {}]},
]
WRONG: list[dict[str, Any]] = [
    {},
    {"city": "Köln 1"},
    {"city": 3},
    {"city": "a", "days": 9},
    {"city": "a", "kind": "c"},
    {"city": "a", "points": []},
    {"city": "a", "points": [{"x": 1}, {"x": 1}, {"x": 1}]},
    {"city": "a", "points": [{}]},
    {"city": "a", "tree": {"right": {}}},
    {"city": "a", "free": 5},
    {"city": "a", "other": 1},
]


@EACH
@pytest.mark.parametrize("have_tokens", [True, False])
async def test_forced_arguments_keep_their_schema(calls: Any, have_tokens: bool) -> None:
    texts = [calls.write([("f", json.dumps(each))]) for each in (*RIGHT, *WRONG)]
    marks = (calls.begin, calls.end, calls.quote) if have_tokens else ()
    found = await accepted(calls, SCHEMA, texts, marks, strict=True)
    assert found == [True] * len(RIGHT) + [False] * len(WRONG)
    for text, made in zip(texts, RIGHT, strict=False):
        ((_, back),) = meaning(OutputFormat(tools=calls, names=NAMES), text).calls
        assert json.loads(back) == made


@pytest.mark.parametrize(
    ("property", "keyword"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "hostname"}, "format"),
        ({"type": "object", "properties": {"b": {}}, "minProperties": 1}, "minProperties"),
    ],
)
async def test_what_cannot_be_enforced_is_refused_for_strict_tools_only(property: object, keyword: str) -> None:
    schema = {"properties": {"a": property}}
    assert await accepted(GEMMA, schema, [GEMMA.write([("f", "{}")])]) == [True]
    with pytest.raises(InvalidRequest, match=keyword):
        await accepted(GEMMA, schema, [], strict=True)


async def test_further_arguments_are_forced_where_the_schema_has_them() -> None:
    schema = {"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
    made = [{"a": 1, "b": "x"}, {"b": "x", "c": "y"}, {}, {"a": "x"}, {"b": 1}]
    texts = [GEMMA.write([("f", json.dumps(each))]) for each in made]
    assert await accepted(GEMMA, schema, texts) == [True, True, True, False, False]
