"""Text to what it means, however it is cut into pieces."""

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.chat.events import ChoiceReply
from services.chat.formats import ANSWER, BRACKETS, HERMES, JSON_LIST, LLAMA, MISTRAL, TAGS
from services.chat.formats.base import OutputFormat, ToolFormat
from services.chat.parsing.output_parser import OutputParser, answer_parser

NAMES = frozenset({"f", "get_weather"})
FORMATS_OF_TOOLS = {"hermes": HERMES, "llama": LLAMA, "mistral": MISTRAL, "json": JSON_LIST}


@dataclass(frozen=True, slots=True)
class Meaning:
    text: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    reasoning: str = ""


def meaning(format: OutputFormat, *pieces: str) -> Meaning:
    parser, reply = answer_parser(format), ChoiceReply()
    parts = [part for piece in pieces for part in parser.feed(piece)] + parser.finish()
    assert [part.end for part in parts] == sorted(part.end for part in parts)
    assert all(part.end <= sum(map(len, pieces)) for part in parts)
    for part in parts:
        reply.add(part.event)
    return Meaning(reply.text, tuple((call.name, call.arguments) for call in reply.calls), reply.reasoning)


def tools(calls: ToolFormat, text: str) -> Meaning:
    whole = meaning(OutputFormat(tools=calls, names=NAMES), text)
    assert meaning(OutputFormat(tools=calls, names=NAMES), *text) == whole
    return whole


class TestEachToolFormat:
    ARGUMENTS: ClassVar[str] = '{"city": "Zürich }]", "n": [1, {"a": "\\"}"}]}'
    CALL: ClassVar[tuple[str, str]] = ("get_weather", ARGUMENTS)

    @pytest.mark.parametrize(
        ("calls", "text"),
        [
            (HERMES, '<tool_call>\n{"name": "get_weather", "arguments": %s}\n</tool_call>'),
            (HERMES, '\n<tool_call>{"name":"get_weather","arguments":%s}</tool_call>\n'),
            (LLAMA, '{"name": "get_weather", "parameters": %s}'),
            (LLAMA, '<|python_tag|>{"name": "get_weather", "parameters": %s}'),
            (LLAMA, '{"name": "get_weather", "arguments": %s}'),
            (MISTRAL, '[TOOL_CALLS][{"name": "get_weather", "arguments": %s}]'),
            (MISTRAL, '[TOOL_CALLS] [{"name": "get_weather", "arguments": %s, "id": "abcdefghi"}]'),
            (MISTRAL, "[TOOL_CALLS]get_weather[ARGS]%s"),
            (JSON_LIST, '[{"name": "get_weather", "arguments": %s}]'),
            (JSON_LIST, '{"name": "get_weather", "parameters": %s}'),
        ],
    )
    def test_call_has_its_arguments_to_the_letter(self, calls: ToolFormat, text: str) -> None:
        assert tools(calls, text % self.ARGUMENTS) == Meaning(calls=(self.CALL,))

    @pytest.mark.parametrize(
        ("calls", "text"),
        [
            (
                HERMES,
                '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n'
                '<tool_call>\n{"name": "get_weather", "arguments": {"a": 1}}\n</tool_call>',
            ),
            (LLAMA, '{"name": "f", "parameters": {}}; {"name": "get_weather", "parameters": {"a": 1}}'),
            (
                MISTRAL,
                '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "get_weather", "arguments": {"a": 1}}]',
            ),
            (MISTRAL, '[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]get_weather[ARGS]{"a": 1}'),
            (JSON_LIST, '[{"name": "f", "arguments": {}}, {"name": "get_weather", "arguments": {"a": 1}}]'),
        ],
    )
    def test_several_calls(self, calls: ToolFormat, text: str) -> None:
        assert tools(calls, text) == Meaning(calls=(("f", "{}"), ("get_weather", '{"a": 1}')))

    @pytest.mark.parametrize(
        "content",
        [
            "Hello, world!",
            "a < b, <tool",
            " [TOOL_CALL] <|python",
            '{"name": "other", "arguments": {}}',
            '{"answer": 42}',
            "[1, 2, 3] are numbers",
            '{"name": "f"',
            "f[ARGS",
        ],
    )
    @pytest.mark.parametrize("calls", FORMATS_OF_TOOLS.values(), ids=FORMATS_OF_TOOLS)
    def test_what_is_no_call_is_content(self, calls: ToolFormat, content: str) -> None:
        assert tools(calls, content) == Meaning(content)

    @pytest.mark.parametrize(
        "content",
        [
            "<tool_call>",
            "<tool_call>\nI cannot.\n</tool_call>",
            '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>',
            '<tool_call>\n{"name": "f", "argu',
            '<tool_call>{"name": "f", "arguments": [}',
            "<tool_call>\n{'name': 'f'}\n</tool_call> or so",
        ],
    )
    def test_malformed_call_is_content(self, content: str) -> None:
        assert tools(HERMES, content) == Meaning(content)

    def test_object_without_an_end_does_not_hide_the_next_call(self) -> None:
        good = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
        content = meaning(OutputFormat(tools=HERMES, names=NAMES), '<tool_call>{"a": 1, ', good)
        assert content == tools(HERMES, '<tool_call>{"a": 1, ' + good)
        assert content == Meaning('<tool_call>{"a": 1,', (("f", "{}"),))

    def test_call_after_a_malformed_one(self) -> None:
        good = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
        assert tools(HERMES, "<tool_call>oh" + good) == Meaning("<tool_call>oh", (("f", "{}"),))

    @pytest.mark.parametrize(
        ("text", "arguments"),
        [
            ('{"arguments": {"a": 1}, "name": "f"}', '{"a": 1}'),
            ('{"type": "function", "name": "f", "parameters": {"a": "é"}}', '{"a": "é"}'),
            ('{"name": "f", "arguments": "{\\"a\\": 1}"}', '{"a": 1}'),
            ('{"name": "f"}', "{}"),
            ('{"name": "f", "arguments": null}', "{}"),
        ],
    )
    def test_call_in_an_unusual_form(self, text: str, arguments: str) -> None:
        assert tools(JSON_LIST, text) == Meaning(calls=(("f", arguments),))
        assert tools(HERMES, f"<tool_call>{text}</tool_call>") == Meaning(calls=(("f", arguments),))

    def test_text_around_calls(self) -> None:
        call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
        assert tools(HERMES, f"Let me see. \n{call}\n\nDone. ") == Meaning("Let me see.Done. ", (("f", "{}"),))

    def test_call_that_was_cut_keeps_what_came_of_its_arguments(self) -> None:
        assert tools(HERMES, '<tool_call>{"name": "f", "arguments": {"a": "b') == Meaning(calls=(("f", '{"a": "b'),))
        assert tools(JSON_LIST, '[{"name": "f", "arguments": {"a": 1}') == Meaning(calls=(("f", '{"a": 1}'),))

    def test_object_that_is_not_closed_ends_with_its_call(self) -> None:
        text = '<tool_call>{"name": "f", "arguments": {}</tool_call> Done.'
        assert tools(HERMES, text) == Meaning("Done.", (("f", "{}"),))

    def test_nothing_is_split_where_no_tools_are_offered(self) -> None:
        text = '<think>hm</think> <tool_call>{"name": "f", "arguments": {}}</tool_call>'
        assert meaning(OutputFormat(), text) == Meaning(text)


CALLED = (("f", "{}"),)


class TestThinking:
    TAGGED: ClassVar[OutputFormat] = OutputFormat(TAGS, tools=HERMES, names=NAMES)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("<think>\nHm. \n</think>\n\nHello ", Meaning("Hello ", reasoning="Hm.")),
            ("\n<think></think>Hello", Meaning("Hello")),
            ("Hello <think>no</think>", Meaning("Hello <think>no</think>")),
            ("<think>a < b </thi", Meaning(reasoning="a < b </thi")),
            ("<thin", Meaning("<thin")),
            ("", Meaning()),
            (
                '<think>call <tool_call>?</think><tool_call>{"name": "f", "arguments": {}}</tool_call>',
                Meaning(calls=(("f", "{}"),), reasoning="call <tool_call>?"),
            ),
        ],
    )
    def test_is_separated_from_content(self, text: str, expected: Meaning) -> None:
        assert meaning(self.TAGGED, text) == expected
        assert meaning(self.TAGGED, *text) == expected

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("<think>\nHm.\n</think>\n<answer>\nHello\n</answer>", Meaning("Hello", reasoning="Hm.")),
            ("<think>Hm.</think>Hello </answer>", Meaning("Hello </answer>", reasoning="Hm.")),
            ("<answer>Hello </answer>", Meaning("Hello")),
            ("<answer>a </ans", Meaning("a </ans")),
            ("<answers>", Meaning("<answers>")),
            ('<think>Hm.</think><tool_call>{"name": "f", "arguments": {}}</tool_call>', Meaning("", CALLED, "Hm.")),
            ('<answer><tool_call>{"name": "f", "arguments": {}}</tool_call></answer>', Meaning("", CALLED)),
        ],
    )
    def test_tags_around_the_content_are_dropped(self, text: str, expected: Meaning) -> None:
        format = replace(self.TAGGED, thinking=ANSWER)
        assert meaning(format, text) == meaning(format, *text) == expected

    def test_may_have_begun_in_the_prompt(self) -> None:
        begun = replace(self.TAGGED, begun=True)
        assert meaning(begun, *"\nHm.\n</think>\n\nHello") == Meaning("Hello", reasoning="Hm.")
        assert meaning(begun, *"Hm.") == Meaning(reasoning="Hm.")

    def test_comes_before_a_call_without_a_marker(self) -> None:
        format = OutputFormat(BRACKETS, tools=JSON_LIST, names=NAMES)
        text = '[THINK]Hm.[/THINK][{"name": "f", "arguments": {}}]'
        assert meaning(format, *text) == Meaning(calls=(("f", "{}"),), reasoning="Hm.")


class TestStops:
    CALL: ClassVar[str] = '<tool_call>{"name": "f", "arguments": {"a": "stop"}}</tool_call>'
    FORMAT: ClassVar[OutputFormat] = OutputFormat(TAGS, tools=HERMES, names=NAMES, stop=("stop", "\n\n", "top!"))

    @pytest.mark.parametrize(
        ("text", "expected", "stop"),
        [
            ("Hello stop it", Meaning("Hello "), "stop"),
            ("Hello sto", Meaning("Hello sto"), None),
            ("a top! b stop", Meaning("a "), "top!"),
            ("<think>stop\n\nit</think>\n\nHi\n\nyou", Meaning("Hi", reasoning="stop\n\nit"), "\n\n"),
            (CALL, Meaning(calls=(("f", '{"a": "stop"}'),)), None),
            (f"Well, {CALL}", Meaning("Well,", (("f", '{"a": "stop"}'),)), None),
            (f"stop {CALL}", Meaning(), "stop"),
            ('<tool_call>{"stop": 1}', Meaning('<tool_call>{"'), "stop"),
        ],
    )
    def test_end_the_content_only(self, text: str, expected: Meaning, stop: str | None) -> None:
        assert meaning(self.FORMAT, text) == meaning(self.FORMAT, *text) == expected
        parser = OutputParser(self.FORMAT)
        parser.feed(text)
        parser.finish()
        assert parser.stopped_by == stop

    def test_may_be_kept(self) -> None:
        assert meaning(replace(self.FORMAT, include_stop=True), *"Hello stop it") == Meaning("Hello stop")

    def test_are_found_in_what_was_taken_for_a_call(self) -> None:
        format = OutputFormat(tools=JSON_LIST, names=NAMES, stop=("1",))
        assert meaning(format, *"[1, 2]") == Meaning("[")


FRAGMENTS = (
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"),
    *("<", "</", "tool", "[", "]", "{", "}", '"', "\\", ", ", "; ", "\n", " ", "f", "é", "😀", "Hello"),
    *('{"name": "f", "arguments": {"a": "é}"}}', '{"name": "f", "parameters": {}}', '{"name": "', '{"arguments": {}'),
    *('<tool_call>\n{"name": "f", "arguments": ', '{"b": [1, 2]}', "}\n</tool_call>", '{"name": "nobody"}'),
)
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=12).map("".join)
FORMATS = [
    OutputFormat(thinking, begun, calls, NAMES, stop=stop)
    for stop in ((), ("ll", "\n ", "é"))
    for calls in (None, *FORMATS_OF_TOOLS.values())
    for thinking, begun in ((None, False), (TAGS, False), (TAGS, True))
]


@given(text=TEXTS, cuts=st.lists(st.integers(0, 200)), format=st.sampled_from(FORMATS))
@example(text='<tool_call>{"name": "f", "arguments": {}}</tool_', cuts=[5], format=FORMATS[3])
def test_meaning_does_not_depend_on_how_it_is_cut(text: str, cuts: list[int], format: OutputFormat) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in pairwise(places)]
    assert meaning(format, *pieces) == meaning(format, text)


@given(content=st.text(), arguments=st.dictionaries(st.text(), st.text() | st.lists(st.integers())))
@pytest.mark.parametrize("ascii_only", [True, False])
def test_arguments_come_out_as_they_were_written(content: str, arguments: dict[str, object], ascii_only: bool) -> None:
    written = json.dumps(arguments, ensure_ascii=ascii_only)
    for calls, text in (
        (HERMES, f'{content}<tool_call>{{"name": "f", "arguments": {written}}}</tool_call>'),
        (LLAMA, f'{{"name": "f", "parameters": {written}}}'),
        (MISTRAL, f'{content}[TOOL_CALLS][{{"name": "f", "arguments": {written}}}]'),
        (MISTRAL, f"{content}[TOOL_CALLS]f[ARGS]{written}"),
    ):
        assert meaning(OutputFormat(tools=calls, names=NAMES), *text).calls == (("f", written),)


@given(text=st.text(st.sampled_from('<tool_cal>{}[]"nme: f,;\\ \n')))
@pytest.mark.parametrize("calls", FORMATS_OF_TOOLS.values(), ids=FORMATS_OF_TOOLS)
def test_nothing_is_lost_where_no_tool_is_called(calls: ToolFormat, text: str) -> None:
    content = meaning(OutputFormat(tools=calls), *text).text
    assert content.replace(" ", "").replace("\n", "") == text.replace(" ", "").replace("\n", "")
