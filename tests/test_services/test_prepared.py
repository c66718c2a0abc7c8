"""Requests for models that think, or are to call: what is asked, and how the answer is to be read."""

import pytest

from schemas.chat_schema import ChatCompletionRequest
from services.chat.formats import HERMES, chat_format_of
from services.chat.request import prompt
from services.chat.request.prepared import PreparedRequest, PromptInput, Target, prepare
from services.engine.base import ThinkingLimit
from services.errors import InvalidRequest, UnsupportedParameter
from tests.fakes import TEMPLATE, FakeTokenizer

THINKS = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)
OPENS = THINKS.replace("enable_thinking is false", "0").replace("assistant: ", "assistant: <think>\n")
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}}


class Tokenizer(FakeTokenizer):
    """The marks of thinking are tokens."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode().replace(b"</think>", b"\xff").replace(b"<think>", b"\xfe"))

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return bytes(token_ids).replace(b"\xff", b"</think>").replace(b"\xfe", b"<think>").decode(errors="replace")


def prepare_request(template: str, **fields: object) -> PreparedRequest:
    request = ChatCompletionRequest.model_validate({"messages": [{"content": "hi"}], **fields})
    answer = prompt.check(request)
    target = Target(Tokenizer(template), chat_format_of(template), max_length=4096)
    return prepare("id", request, PromptInput(prompt.messages(request, (), None)), target, "me", answer)


def text(ready: PreparedRequest) -> str:
    return Tokenizer().decode(list(ready.prompt))


class TestThinking:
    def test_goes_on_as_the_template_has_it(self) -> None:
        assert text(prepare_request(THINKS)) == "user: hi\nassistant: "
        assert not prepare_request(THINKS).output.begun
        assert prepare_request(OPENS).output.begun
        assert prepare_request(TEMPLATE).output.is_plain

    @pytest.mark.parametrize(
        "fields",
        [
            {"enable_thinking": False},
            {"reasoning_effort": "none"},
            {"chat_template_kwargs": {"enable_thinking": False}},
            {"reasoning_effort": "high", "enable_thinking": False},
        ],
    )
    def test_can_be_turned_off(self, fields: dict[str, object]) -> None:
        assert text(prepare_request(THINKS, **fields, tools=[TOOL], tool_choice="required")).endswith("<think></think>")
        assert not prepare_request(THINKS, **fields).output.begun

    @pytest.mark.parametrize(
        ("template", "fields", "param"),
        [
            (OPENS, {"enable_thinking": False}, "enable_thinking"),
            (OPENS, {"reasoning_effort": "none"}, "reasoning_effort"),
        ],
    )
    def test_refused_where_the_model_cannot(self, template: str, fields: dict[str, object], param: str) -> None:
        with pytest.raises(UnsupportedParameter) as refused:
            prepare_request(template, **fields)
        assert refused.value.param == param

    def test_model_that_does_not_think_need_not_be_kept_from_it(self) -> None:
        ready = prepare_request(TEMPLATE, enable_thinking=False, reasoning_effort="none", thinking_token_budget=5)
        assert (ready.output.is_plain, ready.ignored) == (True, ("thinking_token_budget",))

    @pytest.mark.parametrize("fields", [{"enable_thinking": True}, {"reasoning_effort": "low"}])
    def test_wish_to_think_is_left_aside_where_the_model_cannot(self, fields: dict[str, object]) -> None:
        ready = prepare_request(TEMPLATE, **fields)
        assert (ready.output.is_plain, ready.ignored) == (True, tuple(fields))
        assert prepare_request(THINKS, **fields).ignored == ()

    def test_template_that_knows_levels_has_them(self) -> None:
        template = "{{ reasoning_effort }}{% if 0 %}</think>{% endif %}"
        assert text(prepare_request(template, reasoning_effort="xhigh")) == "xhigh"
        assert prepare_request(template, reasoning_effort="low").jobs[0].sampling.thinking is None

    def test_elsewhere_levels_are_budgets(self) -> None:
        assert prepare_request(OPENS, reasoning_effort="low").jobs[0].sampling.thinking == ThinkingLimit(2048, 255)
        assert prepare_request(OPENS, reasoning_effort="high").jobs[0].sampling.thinking is None
        assert prepare_request(OPENS, reasoning_effort="low", thinking_token_budget=7).jobs[
            0
        ].sampling.thinking == ThinkingLimit(7, 255)

    def test_is_limited_once_it_has_begun(self) -> None:
        assert prepare_request(THINKS, thinking_token_budget=7).jobs[0].sampling.thinking == ThinkingLimit(
            7, 255, begin=254
        )
        assert prepare_request(THINKS, thinking_token_budget=7, enable_thinking=False).jobs[0].sampling.thinking is None

    def test_budget_needs_a_token(self) -> None:
        with pytest.raises(UnsupportedParameter) as refused:
            prepare_request("{{ messages[0].content }}[THINK]{# [/THINK] #}", thinking_token_budget=7)
        assert refused.value.param == "thinking_token_budget"


class TestTools:
    TOOLS = THINKS.replace("{% for", '{% if tools %}{{ tools }}{% endif %}{# <tool_call> "arguments" #}{% for', 1)

    def test_template_that_shows_tools_has_them(self) -> None:
        ready = prepare_request(self.TOOLS, tools=[TOOL])
        assert text(ready).startswith("[{'type': 'function', 'function': {'name': 'f'")
        assert (ready.output.tools, ready.output.names) == (HERMES, {"f"})
        assert ready.jobs[0].sampling.grammar is None

    def test_they_are_hidden_where_none_may_be_called(self) -> None:
        ready = prepare_request(self.TOOLS, tools=[TOOL], tool_choice="none")
        assert text(ready) == text(prepare_request(self.TOOLS))
        assert ready.output.tools is None

    @pytest.mark.parametrize(
        ("template", "before"),
        [
            (TOOLS, r'(<"<think>"> ...<"</think>"> /\n{0,2}/)?'),
            (OPENS, r'...<"</think>"> /\n{0,2}/'),
            (TEMPLATE, ""),
        ],
    )
    def test_call_is_forced_after_free_thinking(self, template: str, before: str) -> None:
        ready = prepare_request(template, tools=[TOOL], tool_choice="required")
        grammar = ready.jobs[0].sampling.grammar
        assert grammar
        assert (grammar.kind, grammar.before, grammar.param) == ("lark", before, "tools.0.function.parameters")
        structured = prepare_request(template, response_format={"type": "json_object"}).jobs[0].sampling.grammar
        assert structured
        assert structured.before == before

    def test_call_is_forced_at_once_where_thinking_is_off(self) -> None:
        grammar = (
            prepare_request(self.TOOLS, tools=[TOOL], tool_choice="required", enable_thinking=False)
            .jobs[0]
            .sampling.grammar
        )
        assert grammar
        assert grammar.before == ""

    def test_kind_of_answer_that_cannot_go_with_calls_is_refused(self) -> None:
        with pytest.raises(InvalidRequest) as refused:
            prepare_request(TEMPLATE, tools=[TOOL], guided_regex="a")
        assert refused.value.param == "guided_regex"


def test_stop_strings_are_the_contents_where_there_is_more() -> None:
    ready = prepare_request(THINKS, stop=["\n"], min_tokens=3)
    assert ready.jobs[0].sampling.stop == ()
    assert (ready.output.stop, ready.output.min_tokens) == (("\n",), 3)
    plain = prepare_request(TEMPLATE, stop=["\n"])
    assert (plain.jobs[0].sampling.stop, plain.output.stop) == (("\n",), ())
