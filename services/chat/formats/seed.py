"""Seed-OSS: `<seed:tool_call>\n<function=name>\n<parameter=key>value</parameter>\n</function>\n</seed:tool_call>`."""

from services.chat.formats.xml_calls import XmlCalls

BEGIN, END = "<seed:tool_call>", "</seed:tool_call>"

SEED = XmlCalls(
    name="seed",
    detects=lambda template: BEGIN in template and "<parameter=" in template,
    marker=BEGIN,
    before=(BEGIN,),
    call=("\n<function=NAME>\n", f"</function>\n{END}"),
    argument=("<parameter=KEY>", "</parameter>\n"),
    between=("\n", BEGIN),
    text_end=END,
)
