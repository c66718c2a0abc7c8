"""gpt-oss: channels, calls to `functions`, and what is forced of them."""

import json
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from schemas.chat_schema import ChatCompletionRequest
from schemas.tool_schema import MessageToolCall
from services.chat.events import Callee
from services.chat.formats import HARMONY, chat_format_of
from services.chat.formats.base import OutputFormat
from services.chat.parsing.output_parser import answer_parser
from services.chat.request import prompt
from services.chat.request.prepared import PreparedRequest, PromptInput, Target, prepare
from services.chat_service import ChatService
from services.engine.base import GrammarSpec
from services.engine.grammar.compiler import GrammarCompiler, Matcher
from services.engine.token_texts import TokenTexts
from services.errors import UnsupportedParameter
from tests.fakes import FakeEngine, FakeTokenizer
from tests.test_engine.tiny_tokenizers import byte_level
from tests.test_services.test_output_parser import Meaning, meaning

TEMPLATE = (
    "{% if tools %}{{ tools }}{% endif %}{{ reasoning_effort }}"
    "{% for message in messages %}<|start|>{{ message.role }}"
    "{% if message.role == 'assistant' %}{% if message.thinking %}"
    "<|channel|>analysis<|message|>{{ message.thinking }}<|end|>"
    "<|start|>assistant{% endif %}{% if 'tool_calls' in message %}"
    "<|channel|>commentary to=functions.{{ message.tool_calls[0].function.name }} <|constrain|>json<|message|>"
    "{{ message.tool_calls[0].function.arguments | tojson }}<|call|>"
    "{% else %}<|channel|>final<|message|>{{ message.content }}{% endif %}"
    "{% else %}<|message|>{{ message.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
NAMES = frozenset({"f", "get_weather"})
FORMAT = OutputFormat(HARMONY.answer.thinking, tools=HARMONY, names=NAMES, answer=HARMONY.answer)
ANALYSIS = "<|channel|>analysis<|message|>Hm, a < b.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"
CALL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"
THOUGHT = "Hm, a < b."


def read(text: str, **fields: Any) -> Meaning:
    format = OutputFormat(**{"tools": HARMONY, "names": NAMES, "answer": HARMONY.answer, **fields})
    whole = meaning(format, text)
    assert meaning(format, *text) == whole
    return whole


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{ANALYSIS}{FINAL}Hello, world! ", Meaning("Hello, world! ", reasoning=THOUGHT)),
        (f"{ANALYSIS}{FINAL}Hello<|return|>more", Meaning("Hello", reasoning=THOUGHT)),
        (f"{FINAL}Hello", Meaning("Hello")),
        (f'{ANALYSIS}{CALL}{{"a": 1}}<|call|>', Meaning(calls=(("f", '{"a": 1}'),), reasoning=THOUGHT)),
        (f'{CALL}{{"a": "<|"}}', Meaning(calls=(("f", '{"a": "<|"}'),))),
        (f'{CALL}{{"a": "<|end|>"}}<|call|>', Meaning(calls=(("f", '{"a": "<|end|>"}'),))),
        (f'{CALL}{{"a": 1 <|call|>', Meaning(calls=(("f", '{"a": 1 '),))),
        (f"{CALL}<|call|>", Meaning(calls=(("f", "{}"),))),
        (f'{CALL}{{"a": "b', Meaning(calls=(("f", '{"a": "b'),))),
        (f'{CALL} {{"a": 1}} and more<|call|>', Meaning(calls=(("f", '{"a": 1}'),))),
        (" to=functions.f<|channel|>commentary json<|message|>{}<|call|>", Meaning(calls=(("f", "{}"),))),
        ("<|channel|>analysis to=functions.f code<|message|>{}<|call|>", Meaning(calls=(("f", "{}"),))),
        (
            f"<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant{CALL}{{}}<|call|>",
            Meaning("I will look.", (("f", "{}"),)),
        ),
        (
            f"{ANALYSIS}<|channel|>commentary<|message|>Wait.<|end|><|start|>assistant{ANALYSIS}{FINAL}Done.",
            Meaning("Wait.\n\nDone.", reasoning=f"{THOUGHT}\n\n{THOUGHT}"),
        ),
        (f"<|channel|>analysis<|message|>Hm.<|start|>assistant{FINAL}Hi", Meaning("Hi", reasoning="Hm.")),
        ("<|channel|>analysis<|message|>Hm.<|channel|>final<|message|>Hi", Meaning("Hi", reasoning="Hm.")),
        ("<|channel|>analysis<|message|>a <|en", Meaning(reasoning="a <|en")),
        (f"{ANALYSIS}<|channel|>fin", Meaning(reasoning=THOUGHT)),
        (f"{ANALYSIS}", Meaning(reasoning=THOUGHT)),
        (f"{FINAL}<|end|>", Meaning()),
        ("", Meaning()),
    ],
)
def test_messages(text: str, expected: Meaning) -> None:
    assert read(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "<|channel|>commentary to=functions.other <|constrain|>json<|message|>{}",
        "<|channel|>analysis to=python code<|message|>1 + 1",
        "to=5 or so",
        "Hello, world!",
        "<|channel|>" + 300 * "a",
    ],
)
def test_what_is_no_call_is_content(text: str) -> None:
    assert read(text) == Meaning(text)
    assert read(text, tools=None, names=frozenset()) == Meaning(text)


def test_nothing_follows_a_call() -> None:
    parser = answer_parser(FORMAT)
    parser.feed(f"{CALL}{{}}<|call|><|start|>functions.f")
    assert parser.is_over
    assert parser.stopped_by is None


def test_custom_tool_takes_json_or_text() -> None:
    fields = {"callees": {"f": Callee("f", "custom")}}
    assert read(CALL + '{"input": "a\\nb"}', **fields).calls == (("f", "a\nb"),)
    assert read("<|channel|>commentary to=functions.f<|message|>{a\nb", **fields).calls == (("f", "{a\nb"),)


@pytest.mark.parametrize(
    ("text", "expected", "stop"),
    [
        (f"{ANALYSIS}{FINAL}So b. Hi", Meaning("So ", reasoning=THOUGHT), "b."),
        (f'{CALL}{{"a": "b."}}', Meaning(calls=(("f", '{"a": "b."}'),)), None),
    ],
)
def test_stop_strings_are_the_contents(text: str, expected: Meaning, stop: str | None) -> None:
    assert read(text, stop=("b.",)) == expected
    parser = answer_parser(OutputFormat(tools=HARMONY, names=NAMES, answer=HARMONY.answer, stop=("b.",)))
    parser.feed(text)
    assert parser.stopped_by == stop


@given(
    thought=st.text(st.characters(codec="utf-8")),
    arguments=st.dictionaries(st.text(), st.text() | st.lists(st.integers() | st.booleans() | st.none())),
    data=st.data(),
)
def test_arguments_come_back_however_they_are_cut(
    thought: str, arguments: dict[str, object], data: st.DataObject
) -> None:
    call = HARMONY.write([("f", json.dumps(arguments))])
    text = f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant{call}"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found = meaning(FORMAT, *pieces)
    assert found.reasoning == thought
    assert [(name, json.loads(each)) for name, each in found.calls] == [("f", arguments)]


@given(text=st.text(st.sampled_from("<|channel>ntofis=messg \n{}a")) | st.text())
def test_text_without_marks_is_content(text: str) -> None:
    assert read(FINAL + text.replace("|>", "|")).text == text.replace("|>", "|")


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}}


def prepared(*messages: dict[str, Any], **fields: Any) -> PreparedRequest:
    request = ChatCompletionRequest.model_validate({"messages": [*messages] or [{"content": "hi"}], **fields})
    target = Target(FakeTokenizer(TEMPLATE), chat_format_of(TEMPLATE), max_length=4096)
    given = PromptInput(prompt.messages(request, (), None))
    return prepare("id", request, given, target, "me", prompt.check(request))


def text(ready: PreparedRequest) -> str:
    return bytes(ready.prompt).decode()


class TestPrepared:
    def test_answer_is_parsed_without_tools_too(self) -> None:
        ready = prepared()
        assert (ready.output.answer, ready.output.tools, ready.output.in_content) == (HARMONY.answer, None, False)
        assert not ready.output.is_plain

    def test_content_that_the_prompt_has_begun_goes_on(self) -> None:
        messages = ({"content": "hi"}, {"role": "assistant", "content": "Well"})
        ready = prepared(*messages, continue_final_message=True, add_generation_prompt=False)
        assert text(ready).endswith("final<|message|>Well")
        assert meaning(ready.output, ", yes.<|return|>") == Meaning(", yes.")

    def test_effort_is_the_templates(self) -> None:
        for effort, known in (("minimal", "low"), ("low", "low"), ("medium", "medium"), ("xhigh", "high")):
            assert text(prepared(reasoning_effort=effort)).startswith(f"{known}<|start|>")
        for fields in ({"reasoning_effort": "none"}, {"enable_thinking": False}):
            with pytest.raises(UnsupportedParameter):
                prepared(**fields)

    def test_thoughts_and_calls_are_shown_one_by_one(self) -> None:
        calls = [
            {"id": id, "type": "function", "function": {"name": "f", "arguments": f'{{"a": {place}}}'}}
            for place, id in enumerate(("call_1", "call_2"))
        ]
        given = text(
            prepared(
                {"content": "hi"},
                {"role": "assistant", "content": "Look:", "reasoning_content": "Hm.", "tool_calls": calls},
                {"role": "tool", "tool_call_id": "call_1", "content": "first"},
                {"role": "tool", "tool_call_id": "call_2", "content": "second"},
                tools=[TOOL],
            )
        )
        call = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"
        assert given[given.index("<|start|>assistant") :] == (
            f"<|start|>assistant<|channel|>analysis<|message|>Hm.\n\nLook:<|end|><|start|>assistant"
            f'{call}{{"a": 0}}<|call|><|start|>tool<|message|>first<|end|>'
            f'<|start|>assistant{call}{{"a": 1}}<|call|><|start|>tool<|message|>second<|end|><|start|>assistant'
        )


def grammar_of(**fields: Any) -> GrammarSpec:
    spec = prepared(**fields).jobs[0].sampling.grammar
    assert spec
    return spec


SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}, "strict": True}}
STRICT = {"type": "function", "function": {**TOOL["function"], "strict": True}}


@pytest.mark.parametrize(
    ("fields", "right", "wrong"),
    [
        (
            {"tools": [TOOL], "tool_choice": "required"},
            [f'{ANALYSIS}{CALL}{{"a": 1}}', f'{CALL}{{"a": 1}}'],
            [f"{FINAL}No.", f'{CALL}{{"b": 1}}', f'{CALL}{{"a": 1}}<|call|><|start|>assistant{CALL}{{"a": 1}}'],
        ),
        (
            {"tools": [STRICT]},
            [f'{ANALYSIS}{CALL}{{"a": 1}}', f"{ANALYSIS}{FINAL}Hello, world!"],
            [f'{CALL}{{"a": "b"}}', "Hello"],
        ),
        ({"response_format": SCHEMA}, [f"{ANALYSIS}{FINAL}5", f"{FINAL}5"], [f"{FINAL}five", "5"]),
        (
            {"response_format": SCHEMA, "tools": [TOOL]},
            [f"{ANALYSIS}{FINAL}5", f'{ANALYSIS}{CALL}{{"a": 1}}'],
            [f"{FINAL}five", f"{CALL}5", "5"],
        ),
    ],
)
async def test_what_is_forced(fields: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    tiny = tiny_harmony()
    compiler = GrammarCompiler(TokenTexts(tiny), len(tiny), frozenset([tiny.eos_token_id]))
    spec = grammar_of(**fields)
    taken = []
    for answer in [*right, *wrong]:
        tokens = [*tiny.encode(answer, add_special_tokens=False), tiny.eos_token_id]
        if _takes(await compiler.matcher(spec), tokens):
            taken.append(answer)
    await compiler.stop()
    assert taken == right


def _takes(matcher: Matcher, tokens: list[int]) -> bool:
    for token in tokens:
        allowed = matcher.allowed()
        if not len(allowed) or not allowed[token >> 3] >> (token & 7) & 1:
            return False
        matcher.advance(token)
    return True


def tiny_harmony() -> PreTrainedTokenizerFast:
    """The marks are tokens, and `<|call|>` ends the answer."""
    tiny = byte_level()
    marks = ("start", "channel", "constrain", "message", "end", "call", "return")
    tiny.add_special_tokens({"additional_special_tokens": [f"<|{each}|>" for each in marks]})
    tiny.eos_token = "<|call|>"
    return tiny


class TestPipeline:
    THOUGHT: ClassVar[tuple[str, ...]] = ("<|channel|>", "analysis", "<|message|>", "Hm", ".", "<|end|>")
    CALL: ClassVar[tuple[str, ...]] = (
        "<|start|>assistant",
        "<|channel|>commentary to=functions.f ",
        "<|constrain|>json",
    )

    @pytest.fixture(autouse=True)
    def _scripted(self, engine: FakeEngine) -> None:
        engine.tokenizer = FakeTokenizer(TEMPLATE)
        engine.script = (*self.THOUGHT, *self.CALL, "<|message|>", '{"a"', ": 1}", "<|call|>", "<|start|>functions.f")

    def request(self) -> ChatCompletionRequest:
        return ChatCompletionRequest.model_validate({"messages": [{"content": "hi"}], "tools": [TOOL]})

    async def test_answer_ends_with_its_call(self, chat: ChatService) -> None:
        answer = await chat.create(self.request(), "me")
        (choice,) = answer.choices
        (call,) = choice.message.tool_calls or []
        assert isinstance(call, MessageToolCall)
        assert (call.function.name, call.function.arguments) == ("f", '{"a": 1}')
        assert (choice.message.content, choice.message.reasoning_content) == (None, "Hm.")
        assert choice.finish_reason == "tool_calls"
        assert answer.usage.completion_tokens_details.reasoning_tokens == 5  # with those of its header

    async def test_it_is_streamed_as_it_comes(self, chat: ChatService) -> None:
        deltas = [chunk.choices[0].delta async for chunk in chat.stream(self.request(), "me")]
        assert [delta.reasoning_content for delta in deltas if delta.reasoning_content] == ["Hm", "."]
        assert [call.function.arguments for delta in deltas for call in delta.tool_calls] == ["", '{"a"', ": 1}"]
