"""Calls as in Python: Llama 4, LFM2, Olmo 3, Gemma 3. Literals become JSON while they come."""

import ast
import json
import keyword
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.chat_schema import ChatCompletionRequest
from services.chat.formats import LFM2, OLMO, PYTHONIC, TOOL_CODE, chat_format_of
from services.chat.formats.base import OutputFormat, ToolFormat
from services.chat.parsing.output_parser import answer_parser
from services.chat.request.tool_grammar import tool_grammar
from services.chat.request.tool_selection import select_tools
from services.engine.grammar.compiler import GrammarCompiler
from services.engine.token_texts import TokenTexts
from services.errors import InvalidRequest
from tests.test_engine.tiny_tokenizers import byte_level
from tests.test_services.test_output_parser import NAMES, Meaning, meaning

FORMATS = {"pythonic": PYTHONIC, "lfm2": LFM2, "olmo": OLMO, "tool-code": TOOL_CODE}
EACH = pytest.mark.parametrize("calls", FORMATS.values(), ids=FORMATS)
PARAMETERS = {"f": {"properties": {"city": {}, "days": {}}}}


def read(calls: ToolFormat, text: str) -> Meaning:
    format = OutputFormat(tools=calls, names=NAMES, parameters=PARAMETERS)
    whole = meaning(format, text)
    assert meaning(format, *text) == whole
    return whole


def arguments(text: str, calls: ToolFormat = PYTHONIC) -> object:
    ((_, found),) = read(calls, text).calls
    return json.loads(found)


@pytest.mark.parametrize(
    ("template", "calls"),
    [
        ("{{ tools }} [func_name1(params_name1=params_value1), func_name2(params)]", PYTHONIC),
        ('{{ "List of tools: <|tool_list_start|>[" + tools }}', LFM2),
        ("{{ tools }}<|tool_call_start|>", LFM2),
        ("{{ tools }}<function_calls>\\nget_weather(city='New York')\\n</function_calls>", OLMO),
        ("{{ messages }}<start_of_turn><start_of_image>", TOOL_CODE),
    ],
)
def test_templates(template: str, calls: ToolFormat) -> None:
    format = chat_format_of(template)
    assert (format.tools, format.shows_tools) == (calls, "tools" in template)


TWO = '[f(), get_weather(city="Paris", days=3)]'
CALLED = (("f", "{}"), ("get_weather", '{"city": "Paris", "days": 3}'))


@pytest.mark.parametrize(
    ("calls", "text", "content"),
    [
        (PYTHONIC, TWO, ""),
        (PYTHONIC, f" {TWO}\n", ""),
        (PYTHONIC, f"<|python_start|>{TWO}<|python_end|>", ""),
        (PYTHONIC, f"Look: <|python_start|>{TWO}<|python_end|> Done.", "Look:Done."),
        (PYTHONIC, f"{TWO} Done.", "Done."),
        (LFM2, f"<|tool_call_start|>{TWO}<|tool_call_end|>", ""),
        (LFM2, f"Look. <|tool_call_start|>{TWO}<|tool_call_end|>Checking.", "Look.Checking."),
        (OLMO, "<function_calls>\nf()\nget_weather(city='Paris', days=3)\n</function_calls>", ""),
        (TOOL_CODE, "So:\n```tool_code\nf()\nget_weather(city='Paris', days=3)\n```\nDone.", "So:Done."),
    ],
)
def test_calls(calls: ToolFormat, text: str, content: str) -> None:
    assert read(calls, text) == Meaning(content, CALLED)


def test_name_comes_first_and_arguments_as_they_are_written() -> None:
    parser = answer_parser(OutputFormat(tools=PYTHONIC, names=NAMES))
    deltas = [[part.event for part in parser.feed(text)] for text in ('[f(city="Par', "is", '", days=3', ")]")]
    texts = [[getattr(event, "text", getattr(event, "name", "")) for event in events] for events in deltas]
    assert texts == [["f", '{"city": "Par'], ["is"], ['", "days": '], ["3}"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"""a='it\'s', b="say \"hi\"", c='"'""", {"a": "it's", "b": 'say "hi"', "c": '"'}),
        (r"a='\n\t\\\x41\u00e9\U0001f5fc\101\N{BULLET}\q'", {"a": "\n\t\\Aé🗼A•\\q"}),
        (r"a='\ud83d\ude00', b='\U0000d800'", {"a": "😀", "b": r"\U0000d800"}),
        ("a='two\nlines', b='''it's\n\"so\"''', c=''", {"a": "two\nlines", "b": "it's\n\"so\"", "c": ""}),
        ("""a='it's "so"', b={'c': 'd' , 'e':"f"}""", {"a": """it's "so\"""", "b": {"c": "d", "e": "f"}}),
        (r"a=r'\d+\'', b=b'x', c=f'{y}'", {"a": r"\d+\'", "b": "x", "c": "{y}"}),
        ("a=True, b=False, c=None, d=true, e=null", {"a": True, "b": False, "c": None, "d": True, "e": None}),
        ("a=1, b=-2.5, c=1e3, d=1_000", {"a": 1, "b": -2.5, "c": 1e3, "d": 1000}),
        ("e=0x1F, f=.5, g=+3", {"e": 31, "f": 0.5, "g": 3}),
        ("a=[1, 'x', [True, None], (2,), {}], b=[]", {"a": [1, "x", [True, None], [2], {}], "b": []}),
        ("a={'b': {'c': [1, 2,],}, 1: 'd'}", {"a": {"b": {"c": [1, 2]}, "1": "d"}}),
        ("a = 1 ,b= 'x' , ", {"a": 1, "b": "x"}),
        ("**{'a b': 1, 'c': [2]}, d=3", {"a b": 1, "c": [2], "d": 3}),
        ("'Paris', 3", {"city": "Paris", "days": 3}),
        ("city=New York, days=date(2024, 1)", {"city": "New York", "days": "date(2024, 1)"}),
        ("a=", {"a": ""}),
    ],
)  # fmt: skip
def test_literals(text: str, expected: dict[str, object]) -> None:
    assert arguments(f"[f({text})]") == expected


@pytest.mark.parametrize(
    "text", ["a=[1, 2), b=3", "a={'b': [1", "a=1]", "a='x' 'y', b=2", "**", "a=[}", "=", "a={1, 2}"]
)
def test_broken_literals_are_json_all_the_same(text: str) -> None:
    ((name, found),) = read(PYTHONIC, f"[f({text}))))]").calls
    assert name == "f"
    assert isinstance(json.loads(found), dict)


@EACH
@pytest.mark.parametrize(
    "content",
    ["Hello, world!", "[1, 2, 3] are numbers", "[f]", "[g(a=1)]", "f(a=1) is a call", "[f (", "[", "[]", "(f(1))"],
)
def test_what_is_no_call_is_content(calls: ToolFormat, content: str) -> None:
    format = OutputFormat(tools=calls, names=NAMES - {"f"})
    assert meaning(format, content) == meaning(format, *content) == Meaning(content)


@pytest.mark.parametrize(
    "content", ["<|tool_call_start|>[g()]<|tool_call_end|>", "<|tool_call_start|>[f]", "a <|tool_c"]
)
def test_marker_without_a_call_is_content(content: str) -> None:
    assert read(LFM2, content) == Meaning(content)


TEXTS = st.text(st.characters(codec="utf-8"))
SCALARS = TEXTS | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(SCALARS, lambda each: st.lists(each) | st.dictionaries(TEXTS, each), max_leaves=8)
NAMED = st.dictionaries(st.sampled_from(["city", "days", "_x1", "a b", "", "ü", "class"]), VALUES)
CUTS = st.lists(st.integers(0, 300))


def pieces(text: str, cuts: list[int]) -> Iterator[str]:
    places = [0, *sorted({cut for cut in cuts if 0 < cut < len(text)}), len(text)]
    yield from (text[start:end] for start, end in pairwise(places))


def in_python(made: dict[str, Any]) -> str:
    """As Python itself writes them."""
    members = [f"{key}={value!r}" for key, value in made.items() if _is_name(key)]
    others = {key: value for key, value in made.items() if not _is_name(key)}
    return f"f({', '.join([*members, *([f'**{others!r}'] if others else [])])})"


def _is_name(key: str) -> bool:
    return key.isidentifier() and not keyword.iskeyword(key)


@EACH
@given(made=NAMED, cuts=CUTS)
def test_arguments_come_back_however_they_are_cut(calls: ToolFormat, made: dict[str, Any], cuts: list[int]) -> None:
    text = calls.write([("f", json.dumps(made)), ("get_weather", "{}")])
    found = meaning(OutputFormat(tools=calls, names=NAMES), *pieces(text, cuts))
    assert found.text == ""
    assert [(name, json.loads(each)) for name, each in found.calls] == [("f", made), ("get_weather", {})]


@given(made=NAMED, cuts=CUTS)
@example(made={"city": "'\"\\\n\0"}, cuts=[8])
def test_so_do_those_that_python_wrote(made: dict[str, Any], cuts: list[int]) -> None:
    assert ast.parse(in_python(made))
    found = meaning(OutputFormat(tools=PYTHONIC, names=NAMES), *pieces(f"[{in_python(made)}]", cuts))
    assert [(name, json.loads(each)) for name, each in found.calls] == [("f", made)]


@given(text=st.text(st.sampled_from("f(a='\"\\,=1)[]{}: rTN\n")), cuts=CUTS)
def test_whatever_is_written_reads_as_json(text: str, cuts: list[int]) -> None:
    whole = meaning(OutputFormat(tools=PYTHONIC, names=NAMES), f"[f({text}")
    assert meaning(OutputFormat(tools=PYTHONIC, names=NAMES), *pieces(f"[f({text}", cuts)) == whole
    for _, found in whole.calls[:-1]:
        json.loads(found)


@EACH
@given(text=st.text(st.sampled_from("<|tol_caspyhn`>[]()=f,\n ")) | st.text())
def test_text_that_is_no_call_is_content(calls: ToolFormat, text: str) -> None:
    found = meaning(OutputFormat(tools=calls), text).text
    assert "".join(found.split()) == "".join(text.split())


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1},
        "deep": {"type": "boolean"},
        "days": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "kind": {"enum": ["a", "b", True, None]},
        "a b": {"type": "array", "items": {"$ref": "#/$defs/point"}},
        "more": {"type": ["boolean", "string"]},
    },
    "required": ["deep"],
    "$defs": {"point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
}
RIGHT: list[dict[str, Any]] = [
    {"deep": True},
    {"city": "Köln", "deep": False, "days": None, "kind": "b", "a b": [{"x": 1.5}], "more": False},
    {"deep": True, "days": 3, "kind": True, "more": "x"},
]
WRONG: list[dict[str, Any]] = [
    {},
    {"city": "", "deep": True},
    {"deep": "yes"},
    {"deep": True, "days": "3"},
    {"deep": True, "kind": False},
    {"deep": True, "a b": [{"y": 1}]},
    {"deep": True, "other": 1},
]


async def accepted(
    calls: ToolFormat, schema: dict[str, Any], texts: list[str], marks: Sequence[str] = (), **function: Any
) -> list[bool]:
    """`marks`: that are tokens of the tokenizer."""
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, **function}}
    body = {"messages": [{"content": "hi"}], "tools": [tool], "tool_choice": "required"}
    selection = select_tools(ChatCompletionRequest.model_validate(body))
    assert selection
    spec = tool_grammar(selection, calls)
    assert spec
    tiny = byte_level()
    tiny.add_special_tokens({"additional_special_tokens": list(marks)})
    compiler = GrammarCompiler(TokenTexts(tiny), len(tiny), frozenset([tiny.eos_token_id]))
    try:
        return [await _is_accepted(compiler, spec, tiny, text) for text in texts]
    finally:
        await compiler.stop()


async def _is_accepted(compiler: GrammarCompiler, spec: Any, tiny: Any, text: str) -> bool:
    matcher = await compiler.matcher(spec)
    for token in [*tiny.encode(text, add_special_tokens=False), tiny.eos_token_id]:
        allowed = matcher.allowed()
        if not len(allowed) or not allowed[token >> 3] >> (token & 7) & 1:
            return False
        matcher.advance(token)
    return True


@EACH
async def test_forced_arguments_keep_their_schema(calls: ToolFormat) -> None:
    texts = [calls.write([("f", json.dumps(each))]) for each in (*RIGHT, *WRONG)]
    found = await accepted(calls, SCHEMA, texts, [calls.marker] if calls.marker.startswith("<") else [], strict=True)
    assert found == [True] * len(RIGHT) + [False] * len(WRONG)
    for text, made in zip(texts, RIGHT, strict=False):
        ((_, back),) = meaning(OutputFormat(tools=calls, names=NAMES), text).calls
        assert json.loads(back) == made


async def test_further_arguments_are_forced_where_the_schema_has_them() -> None:
    schema = {"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "boolean"}}
    texts = ["[f(a=1, b=True, c=False)]", "[f(b=True)]", "[f()]", "[f(a=1, b=2)]"]
    assert await accepted(PYTHONIC, schema, texts) == [True, True, True, False]


async def test_what_cannot_be_enforced_is_refused_for_strict_tools_only() -> None:
    schema = {"properties": {"a": {"type": "integer"}}, "minProperties": 1}
    assert await accepted(PYTHONIC, schema, ["[f(a=1)]"]) == [True]
    with pytest.raises(InvalidRequest, match="minProperties"):
        await accepted(PYTHONIC, schema, [], strict=True)


async def test_schemas_may_refer_to_themselves() -> None:
    tree = {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}, {"type": "boolean"}]}
    schema = {"properties": {"a": {"$ref": "#/$defs/tree"}}, "$defs": {"tree": tree}}
    assert await accepted(PYTHONIC, schema, ["[f(a=None)]", "[f(a=5)]"]) == [True, False]


async def test_a_grammar_has_the_definitions_that_each_argument_needs() -> None:
    points = {f"point{place}": {"type": "object", "description": "x" * 5_000} for place in range(20)}
    schema = {"properties": {name: {"$ref": f"#/$defs/{name}"} for name in points}, "$defs": points}
    assert await accepted(PYTHONIC, schema, ["[f(point3={})]", "[f(point3=1)]"]) == [True, False]


async def test_references_may_name_other_parts_of_a_schema() -> None:
    schema = {"properties": {"a": {"type": "object"}, "b": {"items": {"$ref": "#/properties/a"}}}}
    assert await accepted(PYTHONIC, schema, ["[f(b=[{}])]", "[f(b=[1])]"]) == [True, False]
