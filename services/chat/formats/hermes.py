"""Hermes, Qwen 2.5 and 3, Granite 4: `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`."""

from services.chat.formats.json_calls import ARGUMENTS, JsonCalls, object_with


def _detect(template: str) -> bool:
    return "<tool_call>" in template and '"arguments' in template and "<function=" not in template


HERMES = JsonCalls(
    name="hermes",
    detects=_detect,
    headers=(object_with("arguments"),),
    before=("<tool_call>",),
    call=('\n{"name": "NAME", "arguments": ', ARGUMENTS, "}\n", "</tool_call>"),
    between=("\n", "<tool_call>"),
    marker="<tool_call>",
    end="</tool_call>",
)
