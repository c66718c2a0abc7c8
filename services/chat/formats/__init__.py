"""Chat formats: what a model was taught to write, found in its chat template.

A new tool format is a file of this package (`base.ToolFormat` is the contract) and a name in `TOOL_FORMATS`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from jinja2 import Environment, TemplateSyntaxError, meta

from services.chat.formats.base import ChatFormat, ThinkingTags, ToolFormat
from services.chat.formats.deepseek import DEEPSEEK_V3, DEEPSEEK_V3_1
from services.chat.formats.dsml import DEEPSEEK_V3_2, DEEPSEEK_V4
from services.chat.formats.gemma import FUNCTION_GEMMA, GEMMA
from services.chat.formats.glm import GLM_4_5, GLM_4_7
from services.chat.formats.granite import GRANITE
from services.chat.formats.harmony import HARMONY
from services.chat.formats.hermes import HERMES
from services.chat.formats.hunyuan import HUNYUAN
from services.chat.formats.json_list import JSON_LIST
from services.chat.formats.kimi import KIMI_K2
from services.chat.formats.lfm2 import LFM2
from services.chat.formats.llama import LLAMA
from services.chat.formats.minimax import MINIMAX_M2
from services.chat.formats.mistral import MISTRAL
from services.chat.formats.mistral_args import MISTRAL_ARGS
from services.chat.formats.olmo import OLMO
from services.chat.formats.phi import FUNCTOOLS, PHI
from services.chat.formats.pythonic import PYTHONIC
from services.chat.formats.qwen_xml import QWEN_XML
from services.chat.formats.seed import SEED
from services.chat.formats.tool_calls_list import TOOL_CALLS_LIST
from services.chat.formats.tool_code import TOOL_CODE

# The first that detects itself in a template is taken.
ALL: tuple[ToolFormat, ...] = (
    HARMONY,
    TOOL_CALLS_LIST,
    HUNYUAN,
    HERMES,
    QWEN_XML,
    GLM_4_5,
    GLM_4_7,
    DEEPSEEK_V3,
    DEEPSEEK_V3_1,
    DEEPSEEK_V3_2,
    DEEPSEEK_V4,
    KIMI_K2,
    MINIMAX_M2,
    SEED,
    MISTRAL_ARGS,
    MISTRAL,
    GEMMA,
    FUNCTION_GEMMA,
    PYTHONIC,
    LFM2,
    OLMO,
    PHI,
    FUNCTOOLS,
    GRANITE,
    LLAMA,
    TOOL_CODE,
    JSON_LIST,
)
TOOL_FORMATS = {each.name: each for each in ALL}
UNKNOWN = ("<tool_calls>\\n",)  # of formats that none here reads, though their templates look like one that is

TOOLS_FIELD = re.compile(r"""(\[|get\()['"]tools['"]""")  # of a message
CALLS_ALONE = re.compile(r"""\[['"]content['"]\] is none""")  # they are left out of messages with a content

TAGS = ThinkingTags("<think>", "</think>")
BRACKETS = ThinkingTags("[THINK]", "[/THINK]")
SEED_TAGS = ThinkingTags("<seed:think>", "</seed:think>")
CHANNEL = ThinkingTags("<|channel>", "<channel|>", label="thought\n")
OPENSOURCE = ThinkingTags("<think:opensource>", "</think:opensource>")
RESPONSE = replace(TAGS, content=("<response>", "</response>"))  # Granite 3
ANSWER = replace(TAGS, content=("<answer>", "</answer>"))  # Hunyuan A13B
THINKING = {  # by what templates that know it have: the first is taken
    "<response></response>": RESPONSE,
    "</answer>": ANSWER,
    "</think>": TAGS,
    "[/THINK]": BRACKETS,
    "</seed:think>": SEED_TAGS,
    "<channel|>": CHANNEL,
    "</think{}>": OPENSOURCE,
    "</think:opensource>": OPENSOURCE,
}
SWITCHES = ("enable_thinking", "thinking")  # what templates call the argument that turns it on or off
ENVIRONMENT = Environment(extensions=["jinja2.ext.loopcontrols"])  # nothing is rendered


def chat_format_of(template: str | Mapping[str, str] | None, name: str | None = None) -> ChatFormat:
    """`name`: of the tool format, where the template does not show it."""
    return _chat_format(template if isinstance(template, str) else "\n".join((template or {}).values()), name)


@lru_cache
def _chat_format(template: str, name: str | None) -> ChatFormat:
    tools = TOOL_FORMATS[name] if name else _detected(template)
    arguments = _arguments(template)
    in_message = "tools" not in arguments and TOOLS_FIELD.search(template) is not None
    shows_tools = tools is not None and ("tools" in arguments or in_message)
    return ChatFormat(
        tools=tools or JSON_LIST,
        shows_tools=shows_tools,
        shows_calls=shows_tools or (tools is not None and "tool_calls" in template),
        calls_as_text="tool_calls" not in template or CALLS_ALONE.search(template) is not None,
        tools_in_message=in_message,
        result_role="tool_response" if in_message else "tool",
        takes_system="System role not supported" not in template,
        thinking=_thinking(template, tools),
        switch=next((each for each in SWITCHES if each in arguments), None),
        has_effort="reasoning_effort" in arguments,
        thought_key=_thought_key(template),
    )


def _thinking(template: str, tools: ToolFormat | None) -> ThinkingTags | None:
    if tools and tools.answer:
        return tools.answer.thinking
    return next((tags for mark, tags in THINKING.items() if mark in template), None)


def _thought_key(template: str) -> str:
    is_other = "reasoning_content" not in template and re.search(r"""message(\.|\[['"])thinking\b""", template)
    return "thinking" if is_other else "reasoning_content"


def _detected(template: str) -> ToolFormat | None:
    """None: it shows no tools, or in a format of which there is no file here."""
    if any(each in template for each in UNKNOWN):
        return None
    return next((each for each in TOOL_FORMATS.values() if each.detect(template)), None)


def syntax_error(template: str) -> str | None:
    """What is wrong with a template's source, and where. Tags of transformers' own (`generation`) are left unread."""
    try:
        ENVIRONMENT.parse(template)
    except TemplateSyntaxError as error:
        if not str(error.message).startswith("Encountered unknown tag"):
            return f"{error.message} (line {error.lineno})"
    return None


def _arguments(template: str) -> set[str]:
    """What it can be called with."""
    try:
        return meta.find_undeclared_variables(ENVIRONMENT.parse(template))
    except TemplateSyntaxError:  # it has tags of its own
        return set(re.findall(r"\w+", template))
