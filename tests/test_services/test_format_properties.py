"""What each format writes is parsed back, however it is cut; what is no call is content; what is forced is a call."""

import json
import random
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import validate
from llguidance import LLMatcher

from schemas.chat_schema import ChatCompletionRequest
from services.chat.formats import TOOL_FORMATS
from services.chat.formats.base import OutputFormat, ToolFormat
from services.chat.formats.response_template import response_template
from services.chat.request.tool_grammar import tool_grammar
from services.chat.request.tool_selection import select_tools
from services.engine.base import GrammarSpec
from services.engine.grammar.check import Vocabulary
from services.engine.grammar.lark import lark
from tests.generated import examples
from tests.test_services.response_templates import FORCED
from tests.test_services.test_output_parser import Meaning, meaning

ADDRESS = {
    "type": "object",
    "properties": {"street": {"type": "string"}, "number": {"type": "integer"}},
    "required": ["street"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "factor": {"type": "number"},
            "exact": {"type": "boolean"},
            "unit": {"enum": ["celsius", "kelvin"]},
            "until": {"type": ["string", "null"]},
        },
        "required": ["city"],
    },
    "deliver": {
        "type": "object",
        "$defs": {"address": ADDRESS},
        "properties": {
            "to": {"$ref": "#/$defs/address"},
            "items": {"type": "array", "items": {"type": "string"}},
            "note": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
            "more": {},
        },
        "required": ["to", "items"],
    },
    "get_time": {"type": "object", "properties": {}},
    "set": {"type": "object", "properties": {"key": {"type": "string"}}, "additionalProperties": {"type": "string"}},
}
# what looks like other types, or like tags, but for those that end a value
FRAGMENTS = (
    *("5", "true", "null", "None", "{}", '"a"', '"', "\\", "\n", " ", "é", "😀", "<", ">", "</", "Zürich", "{'a': 1}"),
    *("</parameter>", "</arg_value>", "<function=f>", "<think>", "</think>"),
)
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(st.characters(codec="utf-8"), max_size=3), max_size=6).map(
    "".join
)
WORDS = TEXTS.map("x{}".format)  # where another type may stand, too, what looks like it is one
NUMBERS = st.integers(-(2**53), 2**53)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=4,
)
KEYS = st.text(st.sampled_from("abc_-$. é"), min_size=1, max_size=5).map(str.strip).filter(bool)
ARGUMENTS = {
    "get_weather": st.fixed_dictionaries(
        {"city": TEXTS},
        optional={
            "days": NUMBERS,
            "factor": NUMBERS | st.floats(allow_nan=False, allow_infinity=False),
            "exact": st.booleans(),
            "unit": st.sampled_from(["celsius", "kelvin"]),
            "until": st.none() | WORDS,
        },
    ),
    "deliver": st.fixed_dictionaries(
        {"to": st.fixed_dictionaries({"street": TEXTS}, optional={"number": NUMBERS}), "items": st.lists(TEXTS)},
        optional={"note": WORDS | NUMBERS, "more": JSON.filter(lambda value: not isinstance(value, str)) | WORDS},
    ),
    "get_time": st.just({}),
    "set": st.dictionaries(KEYS, TEXTS, max_size=3),
}
CALLS = st.lists(
    st.sampled_from(sorted(SCHEMAS)).flatmap(lambda name: st.tuples(st.just(name), ARGUMENTS[name])),
    min_size=1,
    max_size=3,
)
CUTS = st.lists(st.integers(0, 400))
NAMES = frozenset(SCHEMAS)
READ = {f"template-{name}": response_template(each).tools for name, each in FORCED.items()}
FORMATS = TOOL_FORMATS | {name: each for name, each in READ.items() if each}
every_format = pytest.mark.parametrize("calls", FORMATS.values(), ids=FORMATS)
# the others divide whole answers by markers, which end whatever they stand in
IN_CONTENT = {name: each for name, each in FORMATS.items() if not each.answer}
every_format_in_content = pytest.mark.parametrize("calls", IN_CONTENT.values(), ids=IN_CONTENT)


def cut(text: str, cuts: Sequence[int]) -> list[str]:
    places = sorted({0, len(text), *(each for each in cuts if each < len(text))})
    return [text[start:end] for start, end in pairwise(places)]


def output(calls: ToolFormat) -> OutputFormat:
    return OutputFormat(tools=calls, names=NAMES, parameters=SCHEMAS, answer=calls.answer)


@every_format
@given(made=CALLS, before=st.sampled_from(["", "Let me see."]), cuts=CUTS)
def test_arguments_come_back(
    calls: ToolFormat, made: list[tuple[str, dict[str, Any]]], before: str, cuts: list[int]
) -> None:
    made = made if calls.between else made[:1]
    text = calls.write([(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in made])
    content = "" if calls.bare or calls.answer else before
    parsed = meaning(output(calls), *cut(f"{content}\n\n{text}" if content else text, cuts))
    assert [(name, json.loads(arguments)) for name, arguments in parsed.calls] == made
    assert parsed.text == content


@every_format_in_content
@given(parts=st.data(), cuts=CUTS)
def test_what_is_no_call_is_content(calls: ToolFormat, parts: st.DataObject, cuts: list[int]) -> None:
    call = calls.write([("f", '{"a": "b", "c": [1]}'), ("nobody", "{}")])
    pieces = parts.draw(st.lists(st.integers(0, len(call)), min_size=2, max_size=8))
    text = "".join(call[min(pair) : max(pair)] for pair in pairwise(pieces))
    content = meaning(output(calls), *cut(text, cuts))
    assert not content.calls
    assert content.text == text


@every_format_in_content
def test_answer_that_is_cut_has_no_content_of_its_calls(calls: ToolFormat) -> None:
    written = calls.write([("set", '{"key": "a"}')])
    cuts = [written[:size] for size in range(len(written))]
    begun = [each for each in cuts if meaning(output(calls), each).calls]
    assert begun
    for each in begun:
        assert not meaning(output(calls), each).text
        assert not meaning(output(calls), *each).text


@every_format_in_content
def test_plain_text_is_content_to_the_letter(calls: ToolFormat) -> None:
    for text in ("Hello, world!\n", "a < b, <tool", "  5 > 4 [x] {", "get_weather is a tool", "1. \n\n- <b>x</b>\n"):
        assert meaning(output(calls), *text) == meaning(output(calls), text) == Meaning(text)


class Tokens:
    """A tokenizer of bytes, and with tokens of their own for the tags of a format, or without."""

    def __init__(self, tags: Iterable[str] = ()) -> None:
        self.markers = {tag: place for place, tag in enumerate(sorted(tags), 257)}
        self._texts = [*(bytes([each]) for each in range(256)), b"", *map(str.encode, sorted(tags))]
        special = (256, *self.markers.values())
        vocabulary = Vocabulary((*self._texts[:256], b"<end>", *self._texts[257:]), special, (256,), self.markers)
        self.tokenizer = vocabulary.tokenizer()
        self._pieces = re.compile("|".join([*map(re.escape, sorted(tags, key=len, reverse=True)), "(?s:.)"]))

    def encode(self, text: str) -> list[int]:
        pieces = self._pieces.findall(text)
        return [token for each in pieces for token in ([self.markers[each]] if each in self.markers else each.encode())]

    def decode(self, tokens: Iterable[int]) -> str:
        return b"".join(self._texts[each] for each in tokens).decode()

    def matcher(self, spec: GrammarSpec) -> LLMatcher:
        matcher = LLMatcher(self.tokenizer, LLMatcher.grammar_from_lark(lark(spec, self.markers)))
        assert not matcher.is_error(), matcher.get_error()
        return matcher


BYTES = Tokens()


def tags_of(calls: ToolFormat) -> set[str]:
    written = calls.write([("f", '{"a": "b"}')])
    return {"｜DSML｜"} if "｜DSML｜" in written else set(re.findall(r"<[^<>\s]+>|\[[A-Z_]+\]", written))


class Walk:
    """Random answers of a grammar."""

    def __init__(self, calls: ToolFormat, seed: int, tokens: Tokens) -> None:
        self._random = random.Random(seed)
        self._tokens = tokens
        names = self._random.sample(sorted(SCHEMAS), self._random.randint(1, len(SCHEMAS)))
        tools = [{"type": "function", "function": {"name": name, "parameters": SCHEMAS[name]}} for name in names]
        body = {"messages": [{"content": "hi"}], "tools": tools, "tool_choice": "required"}
        selection = select_tools(ChatCompletionRequest.model_validate(body))
        assert selection
        spec = tool_grammar(selection, calls)
        assert spec
        self._matcher = tokens.matcher(spec)
        written = calls.write([("get_weather", '{"city": "a", "days": 3}'), ("set", '{"b": "c"}')])
        pieces = [written[at : at + 24] for at in range(len(written))]
        ends = [before + tag for tag in set(re.findall(r"<[^<>\s]+>", written)) for before in ("", "\n")]
        self._closing = [*map(tokens.encode, ('"', "}", "]", '"}', '"]', *sorted(ends)))]
        self._pieces = [*self._closing, *map(tokens.encode, pieces)]

    def text(self) -> str:
        written: list[int] = []
        while not self._matcher.is_stopped() and len(written) < 10_000:
            if self._matcher.is_accepting() and self._random.random() < 0.5:
                break
            for token in self._next(is_long=len(written) > 300):
                assert self._matcher.consume_token(token)
                written.append(token)
        assert self._matcher.is_accepting()
        return self._tokens.decode(written)

    def _next(self, *, is_long: bool) -> list[int]:
        """Often what leads on to an end."""
        if is_long or self._random.random() < 0.3:
            pieces = self._closing if is_long else self._pieces
            fitting = [each for each in pieces if self._matcher.validate_tokens(each) == len(each)]
            if fitting:
                return self._random.choice(fitting)
        mask = self._matcher.compute_bitmask()
        allowed = [token for token in range(len(mask) * 8) if mask[token >> 3] >> (token & 7) & 1 and token != 256]
        return [self._random.choice(allowed)]


@every_format
@settings(max_examples=examples(5, 60))
@given(seed=st.integers(0, 10_000))
@pytest.mark.parametrize("has_tokens", [False, True])
def test_what_is_forced_is_a_call_of_a_tool_and_fits_its_schema(calls: ToolFormat, has_tokens: bool, seed: int) -> None:
    # marks that divide whole answers end whatever they stand in, unless they are tokens
    text = Walk(calls, seed, Tokens(tags_of(calls)) if has_tokens or calls.answer else BYTES).text()
    parsed = meaning(output(calls), *text)
    assert parsed == meaning(output(calls), text)
    assert parsed.calls
    assert not parsed.text
    for name, arguments in parsed.calls:
        validate(json.loads(arguments), SCHEMAS[name])
