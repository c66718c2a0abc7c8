"""Hy3: GLM's tags with a suffix, in a block: `<tool_calls:opensource>`, then `<tool_call:opensource>name` and so on."""

from services.chat.formats.xml_calls import XmlCalls

SUFFIX = ":opensource"
MADE = "<tool_sep{}>"  # as templates make the tag


def _tag(name: str) -> str:
    return f"<{name}{SUFFIX}>"


BEGIN, CALL, CALL_END = _tag("tool_calls"), _tag("tool_call"), _tag("/tool_call")

HUNYUAN = XmlCalls(
    name="hunyuan",
    detects=lambda template: MADE in template or MADE.format(SUFFIX) in template,
    marker=BEGIN,
    before=(BEGIN, "\n"),
    call=(f"{CALL}NAME{_tag('tool_sep')}\n", CALL_END),
    argument=(f"{_tag('arg_key')}KEY{_tag('/arg_key')}\n{_tag('arg_value')}", f"{_tag('/arg_value')}\n"),
    between=("\n",),
    after=("\n", _tag("/tool_calls")),
    text_end=CALL_END,
)
