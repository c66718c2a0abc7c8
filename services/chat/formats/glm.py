"""GLM 4.5 to 5: `<tool_call>name`, then `<arg_key>key</arg_key>`, `<arg_value>value</arg_value>` for each argument."""

from services.chat.formats.xml_calls import XmlCalls

KEY_END = "</arg_key>"


def _detect(template: str) -> bool:
    return "<arg_key>" in template and KEY_END in template and "<arg_value>" in template


GLM_4_5 = XmlCalls(  # and 4.6
    name="glm-4.5",
    detects=lambda template: _detect(template) and f"{KEY_END}<arg_value>" not in template,
    marker="<tool_call>",
    before=("<tool_call>",),
    call=("NAME\n", "</tool_call>"),
    argument=("<arg_key>KEY</arg_key>\n<arg_value>", "</arg_value>\n"),
    between=("\n", "<tool_call>"),
    text_end="</tool_call>",
)
GLM_4_7 = XmlCalls(  # and 5: without line ends
    name="glm-4.7",
    detects=lambda template: _detect(template) and f"{KEY_END}<arg_value>" in template,
    marker="<tool_call>",
    before=("<tool_call>",),
    call=("NAME", "</tool_call>"),
    argument=("<arg_key>KEY</arg_key><arg_value>", "</arg_value>"),
    between=("<tool_call>",),
    text_end="</tool_call>",
)
