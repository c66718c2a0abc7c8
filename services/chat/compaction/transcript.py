"""A conversation as one text, for a model that is to write a summary of it."""

from collections.abc import Iterable, Iterator

from schemas.chat_schema import ChatMessage
from schemas.tool_schema import CustomToolCall, MessageToolCall
from services.chat.compaction.item import is_summary, summary_of

LONGEST = 16_000  # characters of a call or a result; of longer ones the beginning and the end
BETWEEN = "\n\n"
INSTRUCTIONS = ("system", "developer")


def transcript(messages: Iterable[ChatMessage]) -> str:
    """Without instructions, which stay, and thoughts, of which the answers tell what came of them."""
    names: dict[str, str] = {}
    return BETWEEN.join(block for message in messages for block in _blocks(message, names))


def _blocks(message: ChatMessage, names: dict[str, str]) -> Iterator[str]:
    """`names` learns what the calls are of."""
    if message.role in INSTRUCTIONS:
        return
    text = text_of(message)
    if message.role == "tool":
        yield f"[result of {names.get(message.tool_call_id or '', 'a tool')}]\n{abridged(text)}"
    elif is_summary(text):
        yield f"[notes so far]\n{summary_of(text)}"
    elif text:
        yield f"[{message.role}]\n{text}"
    for call in message.tool_calls:
        name, arguments = _call(call)
        names[call.id] = name
        yield f"[assistant calls {name}]\n{abridged(arguments)}"


def _call(call: MessageToolCall | CustomToolCall) -> tuple[str, str]:
    if isinstance(call, CustomToolCall):
        return call.custom.name, call.custom.input
    return call.function.name, call.function.arguments


def text_of(message: ChatMessage) -> str:
    content = message.content if message.content is not None else message.refusal or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text") or part.get("refusal") or f"[{part['type']}]" for part in content)


def abridged(text: str, most: int = LONGEST) -> str:
    if len(text) <= most:
        return text
    head, tail = most * 3 // 4, most // 4
    return f"{text[:head]}\n[{len(text) - head - tail} characters left out]\n{text[-tail:]}"


def cut(text: str, most: int) -> int:
    """Where a first portion of so many characters ends: between messages or lines, where there is such a place."""
    if len(text) <= most:
        return len(text)
    for boundary in (BETWEEN, "\n", " "):
        place = text.rfind(boundary, most // 2, most)
        if place >= 0:
            return place + len(boundary)
    return most
