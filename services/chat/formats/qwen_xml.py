"""Qwen3-Coder, Qwen 3.5, Nemotron 3: `<tool_call>\n<function=name>\n<parameter=key>\nvalue\n</parameter>` and so on."""

from services.chat.formats.xml_calls import XmlCalls


def _detect(template: str) -> bool:
    return "<tool_call>" in template and "<function=" in template and "<parameter=" in template


QWEN_XML = XmlCalls(
    name="qwen-xml",
    detects=_detect,
    marker="<tool_call>",
    unmarked="<function=",  # Qwen3-Coder leaves the marker out now and then, more so behind a text
    before=("<tool_call>",),
    call=("\n<function=NAME>\n", "</function>\n</tool_call>"),
    argument=("<parameter=KEY>\n", "\n</parameter>\n"),
    between=("\n", "<tool_call>"),
    text_end="</tool_call>",
)
