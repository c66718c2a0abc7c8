"""A made-up chat format: once registered it is detected, parsed and forced, and the setting takes its name."""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from pydantic import ValidationError

from app.common.settings import Settings
from schemas.chat_schema import ChatCompletionRequest
from schemas.tool_schema import MessageToolCall
from services.chat.formats import TOOL_FORMATS
from services.chat.formats.base import CallRule, Step
from services.chat.formats.lark_text import schema_of, text_rules
from services.chat.parsing.call_writer import CallWriter
from services.chat.parsing.json_text import JsonEnd
from services.chat.parsing.scanner import Scanner
from services.chat_service import ChatService
from services.engine.grammar.compiler import GrammarCompiler
from services.engine.token_texts import TokenTexts
from tests.fakes import FakeEngine, FakeTokenizer
from tests.test_engine.tiny_tokenizers import byte_level

TEMPLATE = "{% for each in messages %}{{ each.content }}{% endfor %}{{ tools }} Write calls as «name: arguments»."
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}


class Guillemets:
    """`«name: {…}»`"""

    name = "guillemets"
    marker = "«"
    before = ("«",)
    between = ("»\n«",)
    after = ("»",)
    bare = False
    unmarked = ""
    answer = None
    text_end = ""

    def detect(self, template: str) -> bool:
        return "«name:" in template

    def parser(self, scanner: Scanner, calls: CallWriter) -> "GuillemetParser":
        return GuillemetParser(scanner, calls)

    def write(self, calls: Iterable[tuple[str, str]]) -> str:
        return "\n".join(f"«{name}: {arguments}»" for name, arguments in calls)

    def example(self) -> str:
        return "«NAME: ARGUMENTS»"

    def call_id(self, id: str, name: str, place: int) -> str:
        return id

    def call_rules(self, rule: CallRule) -> list[str]:
        arguments = f"{rule.name}-arguments"
        return [
            f"{rule.name}: {json.dumps(f'{rule.function.name}: ')} {arguments}",
            f"{arguments}: %json {schema_of(rule.function)}",
        ]

    def text_begin(self, name: str) -> str:
        return ""

    def text_rules(self, rule: CallRule) -> list[str]:
        assert rule.text
        return text_rules(rule.name, rule.text, rule.param)


class GuillemetParser:
    def __init__(self, scanner: Scanner, calls: CallWriter) -> None:
        self._scanner = scanner
        self._calls = calls
        self._passed = ""
        self._json = JsonEnd()
        self._step: Callable[[], Step] = self._name

    def open(self, marker: str) -> None:
        self._passed, self._step = marker, self._name

    def step(self) -> Step:
        return self._step()

    def rejected(self) -> str:
        return self._passed

    def _name(self) -> Step:
        name, colon, _ = self._scanner.text.partition(": ")
        if not colon and not self._scanner.is_over and re.fullmatch(r"\w*:?", name):
            return Step.WAIT
        if name not in self._calls.names:
            return Step.NO_CALL
        self._scanner.take(len(name + colon))
        self._calls.begin(name)
        self._passed, self._json, self._step = "", JsonEnd(), self._arguments
        return Step.GO_ON

    def _arguments(self) -> Step:
        end = self._json.feed(self._scanner.text)
        self._calls.arguments(self._scanner.take(len(self._scanner.text) if end is None else end))
        if end is None:
            return Step.WAIT
        self._calls.end()
        self._step = self._close
        return Step.GO_ON

    def _close(self) -> Step:
        if not self._scanner.text:
            return Step.WAIT
        self._scanner.take(len("»"))
        return Step.NO_CALL  # what follows is content


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine) -> None:
    monkeypatch.setitem(TOOL_FORMATS, Guillemets.name, Guillemets())
    engine.tokenizer = FakeTokenizer(TEMPLATE)
    engine.script = tuple('Let me see.\n«get_weather: {"city": "Köln"}»')


def request(**fields: Any) -> ChatCompletionRequest:
    body = {"messages": [{"content": "How warm is it?"}], "tools": [TOOL], **fields}
    return ChatCompletionRequest.model_validate(body)


async def test_calls_are_parsed(chat: ChatService, engine: FakeEngine) -> None:
    (choice,) = (await chat.create(request(), "me")).choices
    (call,) = choice.message.tool_calls or []
    assert isinstance(call, MessageToolCall)
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Köln"}')
    assert (choice.message.content, choice.finish_reason) == ("Let me see.", "tool_calls")
    assert "get_weather" in engine.prompts[0]


async def test_calls_are_parsed_while_they_come(chat: ChatService) -> None:
    deltas = [chunk.choices[0].delta async for chunk in chat.stream(request(), "me")]
    calls = [call.function for delta in deltas for call in delta.tool_calls]
    assert calls[0].name == "get_weather"
    assert [each.arguments for each in calls] == ["", *'{"city": "Köln"}']


async def test_calls_are_forced(chat: ChatService, engine: FakeEngine) -> None:
    await chat.create(request(tool_choice=TOOL | {"function": {"name": "get_weather"}}), "me")
    spec = engine.jobs[0].sampling.grammar
    assert spec
    tokenizer = byte_level()
    compiler = GrammarCompiler(TokenTexts(tokenizer), len(tokenizer), frozenset([tokenizer.eos_token_id]))
    accepted = {}
    for text in ('«get_weather: {"city": "Köln"}»', '«get_weather: {"town": "Köln"}»', "No."):
        matcher = await compiler.matcher(spec)
        for token in tokenizer.encode(text, add_special_tokens=False):
            matcher.advance(token)
        accepted[text] = matcher.is_over
    await compiler.stop()
    assert list(accepted.values()) == [True, False, False]


def test_setting_takes_its_name() -> None:
    assert Settings(_env_file=None, model={"dialect": "guillemets"}).model.dialect == "guillemets"
    with pytest.raises(ValidationError, match=r"the formats are: .*hermes, .*, guillemets"):
        Settings(_env_file=None, model={"dialect": "parentheses"})
