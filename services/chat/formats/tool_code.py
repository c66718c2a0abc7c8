"""Gemma 3, whose template shows no tools: a block of code that is marked as `tool_code`, with a call a line."""

from services.chat.formats.python_calls import PythonCalls

BEGIN, END = "```tool_code", "```"


def _detect(template: str) -> bool:
    return "<start_of_turn>" in template and ("<start_of_image>" in template or "_soft_token>" in template)


TOOL_CODE = PythonCalls(
    name="tool-code",
    detects=_detect,
    before=(f"{BEGIN}\n",),
    between=("\n",),
    after=(f"\n{END}",),
    ends=(END,),
    marker=BEGIN,
)
