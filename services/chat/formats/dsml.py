"""DeepSeek V3.2 and V4: calls in DSML, tags with a token of their own that say which values are strings."""

from services.chat.formats.xml_calls import XmlCalls

TOKEN = "｜DSML｜"


def _dsml(name: str, block: str) -> XmlCalls:
    """`block`: the tag around all calls."""
    begin, end = f"<{TOKEN}{block}>", f"</{TOKEN}{block}>"
    argument_end, call_end = f"</{TOKEN}parameter>\n", f"</{TOKEN}invoke>"
    return XmlCalls(
        name=name,
        detects=lambda template: TOKEN in template and f"{block}>" in template,
        marker=begin,
        before=(begin, "\n"),
        call=(f'<{TOKEN}invoke name="NAME">\n', call_end),
        argument=(f'<{TOKEN}parameter name="KEY" string="KIND">', argument_end),
        between=("\n",),
        after=("\n", end),
        text_end=argument_end + call_end,
    )


DEEPSEEK_V3_2 = _dsml("deepseek-v3.2", "function_calls")
DEEPSEEK_V4 = _dsml("deepseek-v4", "tool_calls")
