"""Custom tools: how a call is read, and what it is held to where it has a grammar."""

from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from schemas.chat_schema import ChatCompletionRequest
from services.chat.events import Callee, ChoiceReply
from services.chat.formats import TOOL_FORMATS
from services.chat.formats.base import OutputFormat, ToolFormat
from services.chat.parsing.output_parser import answer_parser
from services.chat.request import tool_check
from services.chat.request.tool_grammar import tool_grammar
from services.chat.request.tool_selection import ToolSelection, select_tools
from services.engine.grammar.check import Vocabulary
from services.engine.grammar.lark import lark
from services.errors import InvalidRequest

MARKERS = {"</tool_call>": 257, "<tool_call>": 258, "[TOOL_CALLS]": 259}
ENDS = [b"<end>", *(each.encode() for each in MARKERS)]
BYTES = Vocabulary(tuple(bytes([each]) for each in range(256)) + tuple(ENDS), (256, *MARKERS.values()), (256,), MARKERS)
PATCH = r"""
start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change_move? change?

filename: /(.+)/
add_line: "+" /(.*)/ LF -> line

change_move: "*** Move to: " filename LF
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /(.+)/) LF
change_line: ("+" | "-" | " ") /(.*)/ LF
eof_line: "*** End of File" LF

%import common.LF
"""
PATCHED = '*** Begin Patch\n*** Add File: a "b".txt\n+x\\y\t"z"}]\n+\n*** End Patch'
LETTERS = "^[A-Z]{2}/\\d\n?$"
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}}


def custom(name: str, syntax: str = "", definition: str = "") -> dict[str, Any]:
    grammar = {"syntax": syntax, "definition": definition}
    format = {"type": "grammar", "grammar": grammar} if syntax else {"type": "text"}
    return {"type": "custom", "custom": {"name": name, "format": format}}


TOOLS = [FUNCTION, custom("patch", "lark", PATCH), custom("code", "regex", LETTERS), custom("say")]
CODE = {"type": "custom", "custom": {"name": "code"}}


def offer(choice: object, **more: object) -> ToolSelection:
    body = {"messages": [{"content": "hi"}], "tools": TOOLS, "tool_choice": choice, **more}
    request = ChatCompletionRequest.model_validate(body)
    tool_check.check(request)
    found = select_tools(request)
    assert found
    return found


def tokens(text: str) -> list[int]:
    found: list[int] = []
    while text:
        marker = next((each for each in MARKERS if text.startswith(each)), "")
        found += [MARKERS[marker]] if marker else text[0].encode()
        text = text[len(marker or text[0]) :]
    return found


@pytest.fixture(scope="module")
def tokenizer() -> LLTokenizer:
    return BYTES.tokenizer()


def takes(tokenizer: LLTokenizer, calls: ToolFormat, offer: ToolSelection, text: str) -> bool:
    spec = tool_grammar(offer, calls)
    assert spec
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(lark(spec, MARKERS)))
    assert not matcher.is_error(), matcher.get_error()
    written = tokens(text)
    return (
        matcher.validate_tokens(written) == len(written) and matcher.consume_tokens(written) and matcher.is_accepting()
    )


def read(calls: ToolFormat, offer: ToolSelection, *pieces: str) -> tuple[str, list[tuple[str, str, str]]]:
    format = OutputFormat(tools=calls, names=offer.names, callees=offer.callees, answer=calls.answer)
    parser, written = answer_parser(format), ChoiceReply()
    for part in [part for piece in pieces for part in parser.feed(piece)] + parser.finish():
        written.add(part.event)
    return written.text, [(call.kind, call.name, call.arguments) for call in written.calls]


def begun(calls: ToolFormat, name: str) -> str:
    return "".join(calls.before) + calls.text_begin(name)


@pytest.mark.parametrize("calls", TOOL_FORMATS.values(), ids=TOOL_FORMATS)
class TestHeldToAGrammar:
    @pytest.mark.parametrize("choice", ["required", "auto"])
    def test_text_is_one_of_the_grammar_and_read_as_it_is(
        self, calls: ToolFormat, choice: str, tokenizer: LLTokenizer
    ) -> None:
        for name, text, no_text in (("patch", PATCHED, PATCHED[1:]), ("code", "AB/7\n", "AB/\n")):
            written = begun(calls, name)
            assert takes(tokenizer, calls, offer(choice), written + text)
            assert not takes(tokenizer, calls, offer(choice), written + no_text)
            for pieces in ((written + text,), tuple(written + text)):
                assert read(calls, offer(choice), *pieces) == ("", [("custom", name, text)])

    def test_chosen_one_is_called_once(self, calls: ToolFormat, tokenizer: LLTokenizer) -> None:
        assert takes(tokenizer, calls, offer(CODE), begun(calls, "code") + "AB/7")
        assert not takes(tokenizer, calls, offer(CODE), begun(calls, "patch") + PATCHED)
        assert not takes(tokenizer, calls, offer(CODE), calls.write([("f", "{}")]))

    def test_comes_after_others(self, calls: ToolFormat, tokenizer: LLTokenizer) -> None:
        if not calls.between:
            return
        first = calls.write([("f", '{"a": 1}'), ("say", '{"input": "\\u00e9\\n"}')]).removesuffix("".join(calls.after))
        written = first + "".join(calls.between) + calls.text_begin("code") + "AB/7"
        assert takes(tokenizer, calls, offer("required"), written.replace("\\u00e9", "e"))
        made = [("function", "f", '{"a": 1}'), ("custom", "say", "é\n"), ("custom", "code", "AB/7")]
        for pieces in ((written,), tuple(written)):
            assert read(calls, offer("required"), *pieces) == ("", made)
        alone = offer("required", parallel_tool_calls=False)
        assert not takes(tokenizer, calls, alone, written.replace("\\u00e9", "e"))

    def test_model_may_write_it_as_a_function(self, calls: ToolFormat) -> None:
        several = [("patch", '{"input": "*** \\"a\\"\\n"}'), ("f", "{}")][: 2 if calls.between else 1]
        written = calls.write(several)
        made = [("custom", "patch", '*** "a"\n'), ("function", "f", "{}")][: len(several)]
        for pieces in ((written,), tuple(written)):
            assert read(calls, offer("auto"), *pieces) == ("", made)


def test_several_texts_with_an_end_each(tokenizer: LLTokenizer) -> None:
    for name in ("hermes", "mistral-args"):
        calls = TOOL_FORMATS[name]
        ended = "AB/7\n" + calls.text_end * (calls.text_end not in calls.between)
        written = begun(calls, "code") + ended + "".join(calls.between) + calls.text_begin("code") + "CD/8" + calls.end
        assert takes(tokenizer, calls, offer("required"), written)
        assert read(calls, offer("auto"), *written) == ("", [("custom", "code", "AB/7\n"), ("custom", "code", "CD/8")])


@pytest.mark.parametrize(
    ("text", "content"),
    [('{"name": "f"}\nhi', ""), ('{"name": "nobody"}\nhi', '{"name": "nobody"}\nhi'), ('{"name": ', '{"name": ')],
)
def test_what_is_no_call_of_a_custom_tool_is_none(text: str, content: str) -> None:
    for pieces in ((text,), tuple(text)):
        written, made = read(TOOL_FORMATS["json"], offer("auto"), *pieces)
        assert written == content or made == [("function", "f", "{}")]


def test_one_without_a_grammar_is_free() -> None:
    body = {"messages": [{"content": "hi"}], "tools": [custom("say")]}
    free = select_tools(ChatCompletionRequest.model_validate(body))
    assert free
    assert free.callees == {"say": Callee("say", "custom")}
    assert tool_grammar(free, TOOL_FORMATS["json"]) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "say"}}}, "tool_choice"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice"),
        ({"tools": [custom("f"), FUNCTION]}, "tools.1.function.name"),
        ({"tools": [FUNCTION, custom("f")]}, "tools.1.custom.name"),
    ],
)
def test_refusal_names_what_is_wrong(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        offer(**{"choice": "auto", **fields}) if "tools" in fields else offer(fields["tool_choice"])
    assert refused.value.param == param


def test_grammar_cannot_leave_its_place() -> None:
    escaping = offer("required", tools=[custom("a", "lark", 'start: "a"\n}\nother: "b"\n')])
    with pytest.raises(InvalidRequest) as refused:
        tool_grammar(escaping, TOOL_FORMATS["json"])
    assert refused.value.param == "tools.0.custom.format"
