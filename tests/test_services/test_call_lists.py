"""Granite 3, Phi-4-mini, Hunyuan A13B: lists of JSON calls between marks, and templates that show no earlier calls."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.chat_schema import ChatCompletionRequest
from services.chat.formats import FUNCTOOLS, GRANITE, PHI, TOOL_CALLS_LIST, chat_format_of
from services.chat.formats.base import OutputFormat, ToolFormat
from services.chat.request import prompt
from services.chat.request.prepared import PromptInput, Target, prepare
from tests.fakes import FakeTokenizer
from tests.test_engine.tiny_tokenizers import byte_level
from tests.test_services.test_output_parser import NAMES, Meaning, meaning

FORMATS = {"granite": GRANITE, "phi": PHI, "functools": FUNCTOOLS, "tool-calls-list": TOOL_CALLS_LIST}
EACH = pytest.mark.parametrize("calls", FORMATS.values(), ids=FORMATS)
TWO = '[{"name": "f", "arguments": {}}, {"name": "get_weather", "arguments": {"a": 1}}]'
CALLED = (("f", "{}"), ("get_weather", '{"a": 1}'))
ROLES = "{% for each in messages %}<|{{ each['role'] }}|>{{ each['content'] }}<|end|>{% endfor %}<|assistant|>"
GRANITE_TEMPLATE = "{{ tools }} Answer with <|tool_call|> and a JSON list." + ROLES
PHI_TEMPLATE = ROLES.replace("<|end|>", "{% if each['tools'] %}<|tool|>{{ each['tools'] }}<|/tool|>{% endif %}<|end|>")
TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}


def read(calls: ToolFormat, text: str) -> Meaning:
    format = OutputFormat(tools=calls, names=NAMES)
    whole = meaning(format, text)
    assert meaning(format, *text) == whole
    return whole


@pytest.mark.parametrize(
    ("template", "calls"),
    [
        (GRANITE_TEMPLATE, GRANITE),
        (PHI_TEMPLATE, PHI),
        ("{{ tools }} formatted as functools[{", FUNCTOOLS),
        ('{{ tools }} <tool_calls>[{"name": "f", "arguments": {}}]</tool_calls>', TOOL_CALLS_LIST),
    ],
)
def test_templates(template: str, calls: ToolFormat) -> None:
    format = chat_format_of(template)
    assert format.tools is calls
    assert format.shows_tools


@pytest.mark.parametrize(
    ("calls", "text", "content"),
    [
        (GRANITE, f"<|tool_call|>{TWO}", ""),
        (GRANITE, f"Wait. <|tool_call|> {TWO}", "Wait."),
        (PHI, f"<|tool_call|>{TWO}<|/tool_call|>", ""),
        (PHI, f"So: <|tool_call|>{TWO}<|/tool_call|> Done.", "So:Done."),
        (FUNCTOOLS, f"functools{TWO}", ""),
        (TOOL_CALLS_LIST, f"<tool_calls>{TWO}</tool_calls>", ""),
        (TOOL_CALLS_LIST, f"Well.\n<tool_calls>\n{TWO}\n</tool_calls>\nDone.", "Well.Done."),
    ],
)
def test_calls(calls: ToolFormat, text: str, content: str) -> None:
    assert read(calls, text) == Meaning(content, CALLED)


@EACH
@given(
    arguments=st.dictionaries(st.text(), st.text() | st.lists(st.integers() | st.booleans() | st.none())),
    cuts=st.lists(st.integers(0, 200)),
)
def test_arguments_come_back_however_they_are_cut(
    calls: ToolFormat, arguments: dict[str, object], cuts: list[int]
) -> None:
    text = calls.write([("f", json.dumps(arguments)), ("get_weather", "{}")])
    places = [0, *sorted({cut for cut in cuts if 0 < cut < len(text)}), len(text)]
    found = meaning(OutputFormat(tools=calls, names=NAMES), *(text[start:end] for start, end in pairwise(places)))
    assert found.text == ""
    assert [(name, json.loads(each)) for name, each in found.calls] == [("f", arguments), ("get_weather", {})]


@EACH
@given(text=st.text(st.sampled_from('<|tol_cas>[]{}"nme: f\n')) | st.text())
def test_text_that_is_no_call_is_content(calls: ToolFormat, text: str) -> None:
    found = meaning(OutputFormat(tools=calls), text).text
    assert "".join(found.split()) == "".join(text.split())


def shown(template: str) -> str:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"content": "hi"},
        {"role": "assistant", "content": "Look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "31 degrees"},
    ]
    request = ChatCompletionRequest.model_validate({"messages": messages, "tools": [TOOL]})
    target = Target(FakeTokenizer(template), chat_format_of(template), max_length=4096)
    ready = prepare("id", request, PromptInput(prompt.messages(request, (), None)), target, "me")
    return str(target.tokenizer.decode(list(ready.prompt)))


CALL = '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}]'


def test_calls_that_the_template_does_not_show_are_content() -> None:
    assert f"<|assistant|>Look.\n{CALL}<|end|><|tool|>31 degrees<|end|>" in shown(GRANITE_TEMPLATE)


def test_tools_may_be_a_field_of_the_systems_message() -> None:
    text = shown(PHI_TEMPLATE)
    assert text.startswith(f"<|system|><|tool|>{json.dumps([TOOL['function']])}<|/tool|><|end|><|user|>hi")
    assert f"Look.\n{CALL}<|/tool_call|><|end|><|tool_response|>31 degrees<|end|>" in text


def test_marks_of_calls_in_the_content_are_tokens() -> None:
    tiny = byte_level()
    tiny.add_special_tokens({"additional_special_tokens": ["<|tool_call|>", "<|end|>"]})
    tiny.chat_template = GRANITE_TEMPLATE
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"content": "<|tool_call|>"},
        {"role": "assistant", "content": "<|end|>", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "<|tool_call|>"},
    ]
    request = ChatCompletionRequest.model_validate({"messages": messages})
    target = Target(tiny, chat_format_of(GRANITE_TEMPLATE), max_length=4096)
    ready = prepare("id", request, PromptInput(prompt.messages(request, (), None)), target, "me")
    ids = tiny.convert_tokens_to_ids(["<|tool_call|>", "<|end|>"])
    assert [ready.prompt.count(each) for each in ids] == [2, 3]  # one of them the template's own
