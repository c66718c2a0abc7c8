"""Chat formats: what a model was taught to write, found in its chat template, or in its `response_template`.

A new tool format is a file of this package (`base.ToolFormat` is the contract) and a name in `TOOL_FORMATS`.
"""

import json
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
from services.chat.formats.region_calls import RegionCalls
from services.chat.formats.response_template import ResponseTemplate, response_template
from services.chat.formats.seed import SEED
from services.chat.formats.tool_calls_list import TOOL_CALLS_LIST
from services.chat.formats.tool_code import TOOL_CODE
from services.engine.base import Tokenizer

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


def chat_format(tokenizer: Tokenizer | None, name: str | None = None) -> ChatFormat:
    """`name`: of the tool format, where neither the chat template nor a response template shows it."""
    return chat_format_of(tokenizer.chat_template if tokenizer else None, name, _response(tokenizer))


def chat_format_of(
    template: str | Mapping[str, str] | None, name: str | None = None, response: object = None
) -> ChatFormat:
    """`response`: the tokenizer's `response_template`."""
    return _chat_format(_joined(template), name, json.dumps(response) if response is not None else "")


def marks(tokenizer: Tokenizer) -> str:
    """A text with all the marks of turns, thoughts and calls in it."""
    written, response = _joined(tokenizer.chat_template), _response(tokenizer)
    return "\n".join((written, *_response_template(json.dumps(response)).literals)) if response else written


def _joined(template: str | Mapping[str, str] | None) -> str:
    """Of a tokenizer with several templates, all of them."""
    return template if isinstance(template, str) else "\n".join((template or {}).values())


def _response(tokenizer: Tokenizer | None) -> object:
    return getattr(tokenizer, "response_template", None)


@lru_cache
def _response_template(source: str) -> ResponseTemplate:
    return response_template(json.loads(source)) if source else ResponseTemplate()


@lru_cache
def _chat_format(template: str, name: str | None, response_source: str) -> ChatFormat:
    response = _response_template(response_source)
    own = TOOL_FORMATS[name] if name else _detected(template)
    tools = own or response.tools
    arguments = _arguments(template)
    in_message = "tools" not in arguments and TOOLS_FIELD.search(template) is not None
    takes_tools = "tools" in arguments or in_message
    if isinstance(tools, RegionCalls) and not takes_tools:
        tools = None  # it could not be told in words how it calls
    shows_tools = tools is not None and takes_tools
    return ChatFormat(
        tools=tools or JSON_LIST,
        shows_tools=shows_tools,
        shows_calls=shows_tools or (tools is not None and "tool_calls" in template),
        calls_as_text="tool_calls" not in template or CALLS_ALONE.search(template) is not None,
        tools_in_message=in_message,
        result_role="tool_response" if in_message else "tool",
        takes_system="System role not supported" not in template,
        thinking=_thinking(template, own, response),
        switch=next((each for each in SWITCHES if each in arguments), None),
        has_effort="reasoning_effort" in arguments,
        thought_key=_thought_key(template),
        content_marks=() if own and own.answer else response.content_marks,
    )


def _thinking(template: str, own: ToolFormat | None, response: ResponseTemplate) -> ThinkingTags | None:
    if own and own.answer:
        return own.answer.thinking
    known = next((tags for mark, tags in THINKING.items() if mark in template), None)
    return known if own and known else response.thinking or known


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
