"""Dialects and the chat templates of real models: what is found in them, what they make of calls and results."""

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from schemas.chat_schema import ChatCompletionRequest
from services.chat.formats import (
    BRACKETS,
    DEEPSEEK_V3,
    DEEPSEEK_V3_1,
    DEEPSEEK_V3_2,
    DEEPSEEK_V4,
    GLM_4_5,
    GLM_4_7,
    HERMES,
    JSON_LIST,
    KIMI_K2,
    LLAMA,
    MINIMAX_M2,
    MISTRAL,
    QWEN_XML,
    RESPONSE,
    SEED,
    TAGS,
    TOOL_FORMATS,
    chat_format_of,
)
from services.chat.formats.base import OutputFormat, ToolFormat
from services.chat.request import prompt
from services.chat.request.prepared import PreparedRequest, PromptInput, Target, prepare
from services.chat.request.tool_grammar import MAX_CALLS, tool_grammar
from services.chat.request.tool_selection import select_tools
from services.engine.base import GrammarSpec
from services.engine.grammar.compiler import GrammarCompiler
from services.engine.token_texts import TokenTexts
from tests.npm_packages import tokenizer
from tests.test_engine.tiny_tokenizers import byte_level
from tests.test_services import chat_templates
from tests.test_services.test_output_parser import Meaning, meaning

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "get_time"}}
NAMES = frozenset({"get_weather", "get_time"})
SMALL = byte_level()
PARIS = ("get_weather", '{"city": "Paris 🗼", "days": 3}')
NOW = ("get_time", "{}")


def request(**fields: object) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate(
        {"messages": [{"content": "How warm is it?"}], "tools": [WEATHER, TIME], **fields}
    )


class TestFinding:
    @pytest.mark.parametrize(
        ("template", "calls", "shows_tools"),
        [
            ("{{ messages }}", JSON_LIST, False),
            (None, JSON_LIST, False),
            ('{{ tools }}<tool_call>{"name": "f", "arguments": {}}', HERMES, True),
            ("{{ tools }}<tool_call><function=f>", JSON_LIST, False),
            ("{{ tools }}in a format that nobody knows", JSON_LIST, False),
            ("{{ tools }}[TOOL_CALLS]", MISTRAL, True),
            ({"default": "{{ messages }}", "tool_use": '{{ tools }}ipython "parameters"'}, LLAMA, True),
        ],
    )
    def test_calls(self, template: Any, calls: ToolFormat, shows_tools: bool) -> None:
        format = chat_format_of(template)
        assert format.tools is calls
        assert format.shows_tools is shows_tools

    def test_name_decides_where_one_is_set(self) -> None:
        assert chat_format_of("{{ messages }}", "hermes").tools is HERMES
        assert not chat_format_of("{{ messages }}", "hermes").shows_tools

    def test_thinking(self) -> None:
        assert chat_format_of("{% if x == '</think>' %}").thinking == TAGS
        assert chat_format_of("[THINK][/THINK]").thinking == BRACKETS
        assert chat_format_of("between <think></think>, then between <response></response>").thinking == RESPONSE
        assert chat_format_of("{{ messages }}").thinking is None

    def test_arguments_are_variables_and_not_words(self) -> None:
        format = chat_format_of("thinking {{ enable_thinking }} reasoning_effort")
        assert (format.switch, format.has_effort) == ("enable_thinking", False)
        assert chat_format_of("{% if thinking %}{{ reasoning_effort }}{% endif %}").switch == "thinking"

    def test_template_with_tags_of_its_own_is_read_too(self) -> None:
        assert chat_format_of("{% generation %}{{ tools }}[TOOL_CALLS]{% endgeneration %}").shows_tools


REAL = [
    ("qwen3", HERMES),
    ("qwen2_5", HERMES),
    ("llama3_2", LLAMA),
    ("mistral_nemo", MISTRAL),
    ("deepseek_v3", DEEPSEEK_V3),
]


@pytest.mark.parametrize(("name", "calls"), REAL, ids=[name for name, _ in REAL])
class TestRealTemplates:
    def prepared(self, name: str, **fields: object) -> PreparedRequest:
        asking = request(**fields)
        target = Target(tokenizer(name), chat_format_of(tokenizer(name).chat_template), max_length=4096)
        given = PromptInput(prompt.messages(asking, (), None))
        return prepare("id", asking, given, target, "me", prompt.check(asking))

    def text(self, name: str, **fields: object) -> str:
        return str(tokenizer(name).decode(self.prepared(name, **fields).prompt))

    def test_tools_are_shown(self, name: str, calls: ToolFormat) -> None:
        text = self.text(name)
        assert chat_format_of(tokenizer(name).chat_template).tools is calls
        assert text.count("get_weather") == text.count("get_time") == 1
        assert "get_weather" not in self.text(name, tool_choice="none")

    def test_calls_and_results_come_back_as_the_model_writes_them(self, name: str, calls: ToolFormat) -> None:
        call = {"id": "call_1", "type": "function", "function": {"name": PARIS[0], "arguments": PARIS[1]}}
        text = self.text(
            name,
            messages=[
                {"content": "How warm is it?"},
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_1", "content": "31 degrees"},
            ],
        )
        assert "31 degrees" in text
        written = re.sub(r"(?s).*How warm is it\?", "", text).split("31 degrees")[0]
        parsed = meaning(OutputFormat(tools=replace(calls, bare=False), names=NAMES), written)
        bare = meaning(OutputFormat(tools=calls, names=NAMES), written[written.index("{") :])
        (found,) = parsed.calls or bare.calls
        assert (found[0], json.loads(found[1])) == (PARIS[0], json.loads(PARIS[1]))


SHORT = {
    "qwen3-coder": (chat_templates.QWEN3_CODER, QWEN_XML),
    "glm-4.5": (chat_templates.GLM_4_5, GLM_4_5),
    "glm-4.7": (chat_templates.GLM_4_7, GLM_4_7),
    "deepseek-v3.1": (chat_templates.DEEPSEEK_V3_1, DEEPSEEK_V3_1),
    "kimi-k2": (chat_templates.KIMI_K2, KIMI_K2),
    "seed": (chat_templates.SEED, SEED),
    "minimax-m2": (chat_templates.MINIMAX_M2, MINIMAX_M2),
    "deepseek-v3.2": (chat_templates.DEEPSEEK_V3_2, DEEPSEEK_V3_2),
    "deepseek-v4": (chat_templates.DEEPSEEK_V4, DEEPSEEK_V4),
}


@pytest.mark.parametrize(("template", "calls"), SHORT.values(), ids=SHORT)
class TestShortTemplates:
    def text(self, template: str, **fields: object) -> str:
        small = byte_level()
        small.chat_template = template
        asking = request(**fields)
        target = Target(small, chat_format_of(template), max_length=4096)
        given = PromptInput(prompt.messages(asking, (), None))
        return str(small.decode(prepare("id", asking, given, target, "me", prompt.check(asking)).prompt))

    def test_format_is_found_and_tools_are_shown_once(self, template: str, calls: ToolFormat) -> None:
        assert chat_format_of(template).tools is calls
        text = self.text(template)
        assert text.count("get_weather") == text.count("get_time") == 1
        assert "get_weather" not in self.text(template, tool_choice="none")

    def test_earlier_calls_are_what_the_format_writes(self, template: str, calls: ToolFormat) -> None:
        made = [("get_weather", '{"city": "Paris 5", "days": 3}'), ("get_time", "{}")]
        called = [
            {"id": f"call_{place}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for place, (name, arguments) in enumerate(made)
        ]
        text = self.text(
            template,
            messages=[
                {"content": "How warm is it?"},
                {"role": "assistant", "content": "", "tool_calls": called},
                {"role": "tool", "tool_call_id": "call_0", "content": "31 degrees"},
                {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
            ],
        )
        assert calls.write(made) in text
        assert "31 degrees" in text


@pytest.mark.parametrize("enabled", [True, False])
def test_qwen_thinks_unless_it_is_told_not_to(enabled: bool) -> None:
    ready = TestRealTemplates().prepared("qwen3", enable_thinking=enabled, tool_choice="required")
    text = str(tokenizer("qwen3").decode(ready.prompt))
    assert text.endswith("<think>\n\n</think>\n\n") is not enabled
    assert ready.jobs[0].sampling.grammar
    assert bool(ready.jobs[0].sampling.grammar.before) is enabled


async def test_qwen_thinks_before_it_is_forced_to_call() -> None:
    qwen = tokenizer("qwen3")
    spec = TestRealTemplates().prepared("qwen3", tool_choice="required").jobs[0].sampling.grammar
    call = HERMES.write([PARIS])
    assert await accepts(qwen, spec, f"<think>\nHm, <tool> or not?\n</think>\n\n{call}")
    assert await accepts(qwen, spec, call)
    assert not await accepts(qwen, spec, "<think>\nHm.\n</think>\n\nNo.")
    assert not await accepts(qwen, spec, "No.")


def test_earlier_thinking_is_passed_on() -> None:
    answer = {"role": "assistant", "content": "Yes.", "reasoning_content": "Is it so?"}
    text = TestRealTemplates().text(
        "qwen3", messages=[{"content": "Hi"}, answer], tools=[], add_generation_prompt=False
    )
    assert "<think>\nIs it so?\n</think>\n\nYes." in text


compiling: dict[Any, GrammarCompiler] = {}  # each reads its tokenizer twice


@pytest.fixture(autouse=True, scope="module")
def _stopped() -> Iterator[None]:
    yield
    while compiling:
        asyncio.run(compiling.popitem()[1].stop())


async def accepts(tokenizer: Any, spec: GrammarSpec | None, text: str, end: bool = True) -> bool:
    """Whether an answer may be just that."""
    assert spec
    eos = tokenizer.eos_token_id
    if tokenizer not in compiling:
        compiling[tokenizer] = GrammarCompiler(TokenTexts(tokenizer), len(tokenizer), frozenset([eos]))
    matcher = await compiling[tokenizer].matcher(spec)
    for token in [*tokenizer.encode(text, add_special_tokens=False), *([eos] if end else [])]:
        allowed = matcher.allowed()
        if not len(allowed) or not allowed[token >> 3] >> (token & 7) & 1:
            return False
        matcher.advance(token)
    return True


def grammar(calls: ToolFormat, answer: GrammarSpec | None = None, **fields: object) -> GrammarSpec | None:
    selection = select_tools(request(**fields))
    assert selection
    return tool_grammar(selection, calls, answer, calls.answer.content if calls.answer else ())


def content(calls: ToolFormat, text: str) -> str:
    return "".join(calls.answer.content) + text if calls.answer else text


def parsed(calls: ToolFormat, text: str) -> Meaning:
    return meaning(OutputFormat(tools=calls, names=NAMES, answer=calls.answer), text)


@pytest.mark.parametrize("calls", TOOL_FORMATS.values(), ids=TOOL_FORMATS)
class TestGrammar:
    WRONG: ClassVar[list[tuple[str, str]]] = [
        ("get_weather", '{"days": 3}'),
        ("nobody", "{}"),
        ("get_time", '{"a": 1}'),
    ]

    async def accepts(self, spec: GrammarSpec | None, text: str, end: bool = True) -> bool:
        return await accepts(SMALL, spec, text, end)

    async def test_forced_calls_are_what_is_read_as_calls(self, calls: ToolFormat) -> None:
        spec = grammar(calls, tool_choice="required")
        for made in ([PARIS], [NOW], *([[PARIS, NOW, PARIS]] if calls.between else [])):
            assert await self.accepts(spec, calls.write(made))
            assert parsed(calls, calls.write(made)).calls == tuple(made)
        for wrong in [
            content(calls, "Hello"),
            "",
            "Hm. " + calls.write([NOW]),
            *(calls.write([each]) for each in self.WRONG),
        ]:
            assert not await self.accepts(spec, wrong)

    async def test_there_are_only_so_many(self, calls: ToolFormat) -> None:
        spec = grammar(calls, tool_choice="required")
        most = MAX_CALLS if calls.between else 1
        assert await self.accepts(spec, calls.write([NOW] * most))
        assert not await self.accepts(spec, calls.write([NOW] * (most + 1)))

    async def test_named_tool_is_called_once(self, calls: ToolFormat) -> None:
        spec = grammar(calls, tool_choice={"type": "function", "function": {"name": "get_weather"}})
        assert await self.accepts(spec, calls.write([PARIS]))
        assert not await self.accepts(spec, calls.write([PARIS, PARIS]))
        assert not await self.accepts(spec, calls.write([NOW]))

    async def test_free_answer_calls_once_where_calls_may_not_be_parallel(self, calls: ToolFormat) -> None:
        spec = grammar(calls, parallel_tool_calls=False)
        assert await self.accepts(spec, content(calls, "Hello, world!\n"))
        assert await self.accepts(spec, calls.write([PARIS]))
        assert await self.accepts(spec, calls.marker + calls.write([PARIS]).removeprefix(calls.marker))
        assert not await self.accepts(spec, calls.write([PARIS, NOW]))
        assert not await self.accepts(spec, calls.write([PARIS]) + " Done.")
        assert await self.accepts(spec, "Hm.\n" + calls.write([NOW])) or calls.bare or calls.answer

    async def test_free_answer_keeps_strict_tools_schemas(self, calls: ToolFormat) -> None:
        strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
        assert grammar(calls) is None
        spec = grammar(calls, tools=[strict, TIME])
        assert await self.accepts(spec, content(calls, "Hello"))
        assert await self.accepts(spec, calls.write([PARIS, NOW] if calls.between else [PARIS]))
        assert not await self.accepts(spec, calls.write([("get_weather", '{"days": 3}')]), end=False)

    async def test_answer_of_a_form_or_calls(self, calls: ToolFormat) -> None:
        form = {"type": "object", "properties": {"name": {"type": "string"}}, "additionalProperties": False}
        spec = grammar(calls, GrammarSpec("json_schema", json.dumps(form)))
        assert await self.accepts(spec, content(calls, '{"name": "get_time"}'))
        assert not await self.accepts(spec, content(calls, "Hello"))
        written = calls.write([PARIS, NOW] if calls.between else [PARIS])
        assert await self.accepts(spec, written if calls.before else calls.marker + written)


def test_schemas_are_closed_where_nothing_is_said() -> None:
    spec = grammar(JSON_LIST, tool_choice="required")
    assert spec
    assert spec.param == "tools"
    assert '"additionalProperties": false' in spec.source
    combined = {"type": "function", "function": {"name": "f", "parameters": {"allOf": [{}], "type": "object"}}}
    spec = grammar(JSON_LIST, tools=[combined], tool_choice="required")
    assert spec
    assert "additionalProperties" not in spec.source
