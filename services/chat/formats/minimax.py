"""MiniMax M2: `<minimax:tool_call>\n<invoke name="name">\n<parameter name="key">value</parameter>\n</invoke>`."""

from services.chat.formats.xml_calls import XmlCalls

BEGIN, END = "<minimax:tool_call>", "</minimax:tool_call>"

MINIMAX_M2 = XmlCalls(
    name="minimax-m2",
    detects=lambda template: BEGIN in template and '<parameter name="' in template,
    marker=BEGIN,
    before=(BEGIN, "\n"),
    call=('<invoke name="NAME">\n', "</invoke>"),
    argument=('<parameter name="KEY">', "</parameter>\n"),
    between=("\n",),
    after=("\n", END),
)
