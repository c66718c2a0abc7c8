"""A conversation as one text, which a model summarises."""

from collections.abc import Iterable, Iterator

from schemas.chat_schema import ChatMessage
from schemas.tool_schema import CustomToolCall, MessageToolCall
from services.chat.compaction.item import is_summary, without_prefix

MAX_TOOL_CHARS = 16_000  # of a call's arguments or a result
SEPARATOR = "\n\n"
INSTRUCTION_ROLES = ("system", "developer")


def transcript(messages: Iterable[ChatMessage]) -> str:
    """Leaves out instructions, which stay in the prompt, and reasoning, whose outcome the answers state."""
    names: dict[str, str] = {}
    return SEPARATOR.join(block for message in messages for block in _blocks(message, names))


def _blocks(message: ChatMessage, names: dict[str, str]) -> Iterator[str]:
    """`names` collects the tool's name of each call id."""
    if message.role in INSTRUCTION_ROLES:
        return
    text = text_of(message)
    if message.role == "tool":
        yield f"[result of {names.get(message.tool_call_id or '', 'a tool')}]\n{truncate_middle(text)}"
    elif is_summary(text):
        yield f"[notes so far]\n{without_prefix(text)}"
    elif text:
        yield f"[{message.role}]\n{text}"
    for call in message.tool_calls:
        name, arguments = _call(call)
        names[call.id] = name
        yield f"[assistant calls {name}]\n{truncate_middle(arguments)}"


def _call(call: MessageToolCall | CustomToolCall) -> tuple[str, str]:
    if isinstance(call, CustomToolCall):
        return call.custom.name, call.custom.input
    return call.function.name, call.function.arguments


def text_of(message: ChatMessage) -> str:
    content = message.content if message.content is not None else message.refusal or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text") or part.get("refusal") or f"[{part['type']}]" for part in content)


def truncate_middle(text: str, max_chars: int = MAX_TOOL_CHARS) -> str:
    if len(text) <= max_chars:
        return text
    head, tail = max_chars * 3 // 4, max_chars // 4
    return f"{text[:head]}\n[{len(text) - head - tail} characters left out]\n{text[-tail:]}"


def portion_end(text: str, max_chars: int) -> int:
    """Ends a portion between messages or lines if its second half has such a place."""
    if len(text) <= max_chars:
        return len(text)
    for separator in (SEPARATOR, "\n", " "):
        place = text.rfind(separator, max_chars // 2, max_chars)
        if place >= 0:
            return place + len(separator)
    return max_chars
