"""Kimi K2: `<|tool_calls_section_begin|><|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{…}`."""

from services.chat.formats.json_calls import ARGUMENTS, NAME, PLACE, SPACE, Header, JsonCalls, letters

BEGIN, END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, SEPARATOR, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
PREFIX = "functions."


def _header(prefix: str, *behind: str, before: str = r"\{") -> Header:
    id = (*letters(prefix), NAME, ":", "[0-9]*")
    return Header.of(*letters(CALL), SPACE, *id, SPACE, *letters(SEPARATOR), *behind, wrapped=False, before=before)


def _id(id: str, name: str, place: int) -> str:
    """The one that models write, and templates show with results."""
    return f"{PREFIX}{name}:{place}"


KIMI_K2 = JsonCalls(
    name="kimi-k2",
    detects=lambda template: SEPARATOR in template,
    headers=(_header(PREFIX, "[ \t]*"), _header("", "[ \t]*")),
    before=(BEGIN, CALL),
    call=(f"{PREFIX}NAME:", PLACE, SEPARATOR, ARGUMENTS, CALL_END),
    between=(CALL,),
    after=(END,),
    marker=BEGIN,
    end=CALL_END,
    ids=_id,
    text=(f"{PREFIX}NAME:", PLACE, SEPARATOR, "\n"),
    text_header=_header(PREFIX, "\n", before=""),
)
