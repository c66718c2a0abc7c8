"""Hy3: tags whose names end with a suffix, which its template puts together."""

import pytest

from schemas.chat_schema import ChatCompletionRequest
from services.chat.formats import HUNYUAN, OPENSOURCE, chat_format_of
from services.chat.formats.base import OutputFormat
from services.chat.request import prompt
from services.chat.request.prepared import PromptInput, Target, prepare
from tests.fakes import FakeTokenizer
from tests.test_services.test_output_parser import Meaning, meaning

TEMPLATE = """\
{% set S = ':opensource' %}{% set think_end = '</think{}>'.format(S) %}{% set sep = '<tool_sep{}>'.format(S) %}
{% if tools %}{{ tools | tojson }}{{ reasoning_effort }}{% endif %}
{% for message in messages %}
<{{ message.role }}>{{ message.content }}
{% if message.tool_calls %}
{{ '<tool_calls{}>'.format(S) }}
{% for call in message.tool_calls %}
{{ '<tool_call{}>'.format(S) + call.function.name + sep }}
{% for key, value in call.function.arguments.items() %}
{{ '<arg_key{}>'.format(S) + key + '</arg_key{}>'.format(S) }}
{{ '<arg_value{}>'.format(S) }}{{ value if value is string else value | tojson }}{{ '</arg_value{}>'.format(S) }}
{% endfor %}
{{ '</tool_call{}>'.format(S) }}
{% endfor %}
{{ '</tool_calls{}>'.format(S) }}
{% endif %}
{% endfor %}
<assistant>"""
PARAMETERS = {
    "get_weather": {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "get_time": {"properties": {}},
}
MADE = (("get_weather", '{"city": "5", "days": 3}'), ("get_time", "{}"))
FORMAT = OutputFormat(OPENSOURCE, tools=HUNYUAN, names=frozenset(PARAMETERS), parameters=PARAMETERS)


def test_template() -> None:
    format = chat_format_of(TEMPLATE)
    assert (format.tools, format.shows_tools, format.thinking, format.has_effort) == (HUNYUAN, True, OPENSOURCE, True)


def test_earlier_calls_are_what_the_format_writes() -> None:
    calls = [
        {"id": f"call_{place}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for place, (name, arguments) in enumerate(MADE)
    ]
    tools = [{"type": "function", "function": {"name": name, "parameters": each}} for name, each in PARAMETERS.items()]
    messages = [{"content": "hi"}, {"role": "assistant", "tool_calls": calls}]
    request = ChatCompletionRequest.model_validate({"messages": messages, "tools": tools})
    target = Target(FakeTokenizer(TEMPLATE), chat_format_of(TEMPLATE), max_length=4096)
    ready = prepare("id", request, PromptInput(prompt.messages(request, (), None)), target, "me")
    text = bytes(ready.prompt).decode()
    assert HUNYUAN.write(MADE) in text
    assert meaning(ready.output, HUNYUAN.write(MADE)).calls == MADE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"<think:opensource>Hm.</think:opensource>{HUNYUAN.write(MADE)}", Meaning(calls=MADE, reasoning="Hm.")),
        (f"Look.\n{HUNYUAN.write(MADE)}", Meaning("Look.", MADE)),
        ("<tool_calls:opensource>\nnone", Meaning("<tool_calls:opensource>\nnone")),
    ],
)
def test_answers(text: str, expected: Meaning) -> None:
    assert meaning(FORMAT, text) == meaning(FORMAT, *text) == expected
