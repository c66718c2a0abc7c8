"""`response_template` of a tokenizer: answers are divided as it says, and no text of them is lost."""

import json
import logging
import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.chat_schema import ChatCompletionRequest
from services.chat.formats import HERMES, JSON_LIST, QWEN_XML, chat_format, chat_format_of
from services.chat.formats.base import ChatFormat, OutputFormat
from services.chat.formats.region_calls import RegionCalls
from services.chat.formats.response_template import response_template
from services.chat.request import prompt
from services.chat.request.control_tokens import controls
from services.chat.request.prepared import PreparedRequest, PromptInput, Target, prepare
from services.errors import InvalidRequest
from tests.fakes import FakeTokenizer
from tests.test_services.response_templates import COMMAND, FORCED, GEMMA, INVOKE, LINES, QUOTED, SMOLLM, WHOLE_ONLY
from tests.test_services.test_format_properties import CUTS, cut
from tests.test_services.test_output_parser import Meaning, meaning

SHOWS_TOOLS = "{{ tools }}{% for each in messages %}<user>{{ each.content }}{% endfor %}<assistant>"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "exact": {"type": "boolean"}},
    "required": ["city"],
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
ALL = FORCED | WHOLE_ONLY
every_template = pytest.mark.parametrize("name", ALL)


def output(template: dict[str, Any], *, begun: bool = False, stop: Sequence[str] = ()) -> OutputFormat:
    format = chat_format_of(SHOWS_TOOLS, response=template)
    return OutputFormat(
        thinking=format.thinking,
        begun=begun,
        tools=format.tools,
        names=frozenset({"get_weather"}),
        parameters={"get_weather": SCHEMA},
        content_marks=format.content_marks,
        stop=tuple(stop),
    )


def means(template: dict[str, Any], text: str) -> Meaning:
    """However it is cut."""
    found = meaning(output(template), text)
    assert meaning(output(template), *text) == found
    return found


def call(**arguments: object) -> tuple[tuple[str, str], ...]:
    return (("get_weather", json.dumps(arguments, ensure_ascii=False)),)


ANSWERS = {
    "command": (
        "<|START_THINKING|>I ask.<|END_THINKING|><|START_ACTION|>[\n"
        '    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Köln"}}\n]<|END_ACTION|>',
        Meaning("", call(city="Köln"), "I ask."),
    ),
    "smollm": (
        '<think>\nI ask.\n</think>\n\n<tool_call>{"name": "get_weather", "arguments": {"city": "Köln"}}</tool_call>',
        Meaning("", call(city="Köln"), "I ask."),
    ),
    "keys": (
        'Well. CALL: {"tool": "get_weather", "input": {"city": "Köln"}}<end>',
        Meaning("Well.", call(city="Köln")),
    ),
    "named-json": ('[CALL]to=get_weather\n{"city": "Köln"}\n[END]<eot>', Meaning("", call(city="Köln"))),
    "tagged": (
        "<think>I ask.</think>Well.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call><|im_end|>",
        Meaning("Well.", call(city="Köln", days=3), "I ask."),
    ),
    "unclosed": (
        "<call><fn=get_weather><arg=city>Köln</arg><arg=days>3</arg></call>",
        Meaning("", call(city="Köln", days=3)),
    ),
    "gemma": (
        '<|channel>thought\nI ask.<channel|><|tool_call>call:get_weather{city:<|"|>Köln<|"|>,days:3}<tool_call|>',
        Meaning("", call(city="Köln", days=3), "I ask."),
    ),
    "invoke": (
        'to=self<|msg|>I ask.<|pause|>to=user<|msg|>Well. <|pause|><invoke id="1" name="get_weather">'
        '<param name="city">"Köln"</param><param name="days">3</param></invoke>to=note<|msg|>Yes.<|end|>',
        Meaning("Well.Yes.", call(city="Köln", days=3), "I ask."),
    ),
    "lines": (
        "Well. <tool name=get_weather>\ncity = Köln\ndays = 3\nexact = true\n</tool>",
        Meaning("Well.", call(city="Köln", days=3, exact=True)),
    ),
    "quoted": ('<<{name: "get_weather", args: {city: «Kö:ln»}}>>', Meaning("", call(city="Kö:ln"))),
}


@every_template
def test_answers_are_divided_as_it_says(name: str) -> None:
    text, expected = ANSWERS[name]
    found = means(ALL[name], text)
    calls = [(each, json.loads(arguments)) for each, arguments in found.calls]
    assert calls == [(each, json.loads(arguments)) for each, arguments in expected.calls]
    assert (found.text, found.reasoning) == (expected.text, expected.reasoning)


@every_template
@given(data=st.data(), cuts=CUTS)
def test_no_text_is_lost_however_it_is_cut(name: str, data: st.DataObject, cuts: list[int]) -> None:
    """Pieces of an answer in any order: what is neither a mark nor in a call is content or thought, once."""
    template, (answer, _) = ALL[name], ANSWERS[name]
    form = output(template)
    pieces = re.findall(r"<[^<>]*>|\[[A-Z]+\]|\w+|\s+|.", answer)
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=12)))
    found = meaning(form, *cut(text, cuts))
    assert found == meaning(form, text)
    if not found.calls:
        dropped = [*form.content_marks, *(each for each in (form.thinking and form.thinking.begin,) if each)]
        dropped += [form.thinking.end] if form.thinking else []
        assert _letters(found.reasoning + found.text, dropped) == _letters(text, dropped)


def _letters(text: str, marks: Sequence[str]) -> list[str]:
    """Of a text without marks and space, in no order: thoughts come first here."""
    for each in sorted(marks, key=len, reverse=True):
        text = text.replace(each.strip(), "")
    return sorted("".join(text.split()))


@every_template
def test_an_answer_of_other_words_is_content(name: str) -> None:
    for text in ("Hello, world!\n", "a < b [x] {", "get_weather is a tool", "<b>x</b>\n\n- y"):
        assert means(ALL[name], text) == Meaning(text)


def test_calls_of_other_tools_or_without_a_form_are_content() -> None:
    for text in (
        '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>',
        "<tool_call>nothing</tool_call>",
        '<tool name=nobody>a = 1</tool> <tool name="x">',
    ):
        for template in (SMOLLM, LINES):
            assert means(template, text).text == text


def test_several_calls_of_regions_and_text_behind_them() -> None:
    found = means(LINES, "<tool name=get_weather>city=a</tool>\n<tool name=get_weather>city=b</tool>\nDone.")
    assert [json.loads(each) for _, each in found.calls] == [{"city": "a"}, {"city": "b"}]
    assert found.text == "Done."


def test_a_region_that_was_cut_is_a_call_if_it_is_whole() -> None:
    assert means(QUOTED, '<<{name: "get_weather", args: {}}>').calls == (("get_weather", "{}"),)
    assert means(QUOTED, '<<{name: "get_weather", ar').text == '<<{name: "get_weather", ar'


def test_thoughts_may_come_again_and_stop_strings_are_not_theirs() -> None:
    found = meaning(output(SMOLLM), *"<think>a</think>b<think>c stop</think>d stop e")
    assert (found.reasoning, found.text) == ("ac stop", "bd stop e")
    stopped = meaning(output(SMOLLM, stop=["stop"]), *"<think>a stop</think>d stop e")
    assert (stopped.reasoning, stopped.text) == ("a stop", "d ")


def test_thoughts_without_a_beginning_come_first() -> None:
    template = {
        "start_anchor": "<assistant>",
        "fields": {
            "thinking": {"close": "</think>"},
            "content": {"open": "<answer>", "close": "</answer>"},
            "tool_calls": SMOLLM["fields"]["tool_calls"],
        },
    }
    form = output(template, begun=True)
    for text, thought, content, num_calls in (
        ("hm</think><answer>Yes.</answer>", "hm", "Yes.", 0),
        ('hm<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>', "hm", "", 1),
    ):
        found = meaning(form, *text)
        assert (found.reasoning, found.text, len(found.calls)) == (thought, content, num_calls)


class TestFinding:
    """Formats of our own come first, one that everybody understands last."""

    def format(self, template: str, response: object) -> ChatFormat:
        tokenizer = FakeTokenizer(template)
        tokenizer.response_template = response  # type: ignore[attr-defined]
        return chat_format(tokenizer)

    def test_own_formats_come_first(self) -> None:
        known = self.format('{{ tools }}<tool_call>{"name": "f", "arguments": {}}</tool_call><think></think>', COMMAND)
        assert known.tools is HERMES
        assert known.thinking == chat_format_of("</think>").thinking
        assert chat_format_of("{{ tools }}", "qwen-xml", COMMAND).tools is QWEN_XML

    def test_it_comes_before_the_list_of_calls(self) -> None:
        format = self.format(SHOWS_TOOLS, COMMAND)
        assert format.tools.name == "response-template"
        assert format.shows_tools
        assert format.thinking
        assert format.thinking.begin == "<|START_THINKING|>"

    def test_without_tools_in_the_template_they_are_told_in_words(self) -> None:
        assert self.format("{{ messages }}", COMMAND).tools.example().startswith("<|START_ACTION|>")
        assert self.format("{{ messages }}", INVOKE).tools is JSON_LIST

    def test_its_marks_are_control_tokens(self) -> None:
        tokenizer = FakeTokenizer(SHOWS_TOOLS)
        tokenizer.response_template = COMMAND  # type: ignore[attr-defined]
        added = {1: _Added("<|START_ACTION|>"), 2: _Added("<|elsewhere|>")}
        tokenizer.added_tokens_decoder = added  # type: ignore[attr-defined]
        pattern = controls(tokenizer).every
        assert pattern
        assert pattern.findall("<|START_ACTION|><|elsewhere|>") == ["<|START_ACTION|>"]


class _Added:
    special = False

    def __init__(self, content: str) -> None:
        self.content = content


@pytest.mark.parametrize(
    ("template", "left_out"),
    [
        ("a text", "response_template is left aside"),
        ({"version": 2, "fields": {"content": {}}}, "of another version"),
        ({"fields": {"thinking": {"open": "<a>"}}}, "'thinking' of"),
        ({"fields": {"thinking": {"open_pattern": r"(?:^|<think>\s*)", "close": "</think>"}}}, "'thinking' of"),
        ({"fields": {"content": {"open_pattern": "[^<]*<x>"}}}, "'content' of"),
        ({"fields": {"tool_calls": {"open": "<a>", "close": "</a>"}}}, "its content is 'text'"),
        ({"fields": {"tool_calls": {"open_pattern": "(a+)+<x>", "content": "json"}}}, "'tool_calls' of"),
        ({"fields": {"tool_calls": {"open_pattern": "<x>(", "content": "json"}}}, "'tool_calls' of"),
        ({"fields": {"tool_calls": {"open": 5, "content": "json"}}}, "'tool_calls' of"),
    ],
)
def test_what_cannot_be_read_is_left_out_with_a_line(
    template: object, left_out: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = response_template(template)
    assert (found.tools, found.thinking, found.content_marks) == (None, None, ())
    assert left_out in caplog.text


def test_an_expression_that_takes_for_ever_finds_nothing() -> None:
    slow = {
        "start_anchor": "<assistant>",
        "fields": {
            "tool_calls": {
                "open_pattern": r"<x>(?P<name>(?:(?:a|aa)+)+b)",
                "close": "</x>",
                "content": "json",
                "transform": LINES["fields"]["tool_calls"]["transform"],
            }
        },
    }
    assert isinstance(response_template(slow).tools, RegionCalls)
    text = f"<x>{'a' * 80}c{{}}</x>"
    assert meaning(output(slow), text) == Meaning(text)


class TestRequests:
    def prepared(self, template: dict[str, Any], **fields: object) -> PreparedRequest:
        body = {"messages": [{"content": "How warm is it?"}], "tools": [TOOL], **fields}
        request = ChatCompletionRequest.model_validate(body)
        format = chat_format_of(SHOWS_TOOLS, response=template)
        target = Target(FakeTokenizer(SHOWS_TOOLS), format, max_length=4096)
        given = PromptInput(prompt.messages(request, (), None))
        return prepare("id", request, given, target, "me", prompt.check(request))

    @pytest.mark.parametrize("template", FORCED.values(), ids=FORCED)
    def test_calls_are_forced(self, template: dict[str, Any]) -> None:
        named = {"type": "function", "function": {"name": "get_weather"}}
        for choice in ("required", named):
            job = self.prepared(template, tool_choice=choice).jobs[0]
            assert job.sampling.grammar

    @pytest.mark.parametrize("template", WHOLE_ONLY.values(), ids=WHOLE_ONLY)
    @pytest.mark.parametrize(
        "fields",
        [
            {"tool_choice": "required"},
            {"parallel_tool_calls": False},
            {"tools": [{**TOOL, "function": {**TOOL["function"], "strict": True}}]},
        ],
    )
    def test_what_cannot_be_enforced_is_refused(self, template: dict[str, Any], fields: dict[str, Any]) -> None:
        assert self.prepared(template).jobs[0].sampling.grammar is None
        with pytest.raises(InvalidRequest, match="'tool_choice' is not supported with this model") as refused:
            self.prepared(template, **fields)
        assert refused.value.param == "tool_choice"

    def test_marks_of_content_are_no_content_without_tools(self) -> None:
        form = self.prepared(COMMAND, tools=[]).output
        assert not form.is_plain
        assert meaning(form, *"<|START_RESPONSE|>Hello.<|END_RESPONSE|>") == Meaning("Hello.")
        only = {"start_anchor": "x", "fields": {"content": COMMAND["fields"]["content"]}}
        assert meaning(self.prepared(only, tools=[]).output, *"<|START_RESPONSE|>Hi") == Meaning("Hi")


@pytest.mark.parametrize(("template", "own"), [(SMOLLM, "qwen2"), (GEMMA, "gemma4")])
def test_those_of_transformers_are_read_alike(template: dict[str, Any], own: str) -> None:
    serving = pytest.importorskip("transformers.cli.serving.utils")
    model = SimpleNamespace(config=SimpleNamespace(model_type=own))
    shipped = serving.get_response_template(FakeTokenizer(), model)
    text, _ = ANSWERS["smollm" if template is SMOLLM else "gemma"]
    assert means(shipped, text) == means(template, text)
