"""Messages in the order that strict chat templates take: one system message, the first, and roles that alternate.

Only a template that has refused the messages as they came is given them in another order.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

from services.engine.base import Message

BETWEEN = "\n\n"
JOINED = ("user", "assistant")  # each result of a tool is of its own call

Content = str | list[Any]


def orders(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """As they came; merged; and merged with the system's words as the user's, for templates that know no system."""
    tried = [list(messages)]
    yield tried[0]
    for order in (merged(messages), without_system(merged(messages))):
        if order not in tried:
            tried.append(order)
            yield order


def merged(messages: Sequence[Message]) -> list[Message]:
    """What the system says anywhere in one message in front, and what one role says in a row in one message."""
    system = [each for each in messages if each["role"] == "system"]
    others = [each for each in messages if each["role"] != "system"]
    return [*([reduce(_join, system)] if system else []), *_joined(others)]


def without_system(messages: Sequence[Message]) -> list[Message]:
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    return _joined([{**messages[0], "role": "user"}, *messages[1:]])


def _joined(messages: Sequence[Message]) -> list[Message]:
    rows: list[Message] = []
    for message in messages:
        if rows and message["role"] in JOINED and rows[-1]["role"] == message["role"]:
            rows[-1] = _join(rows[-1], message)
        else:
            rows.append(message)
    return rows


def _join(first: Message, second: Message) -> Message:
    joined = {**first, **second, "content": _contents(first["content"], second["content"])}
    if "reasoning_content" in first and "reasoning_content" in second:
        joined["reasoning_content"] = f"{first['reasoning_content']}{BETWEEN}{second['reasoning_content']}"
    if "tool_calls" in first and "tool_calls" in second:
        joined["tool_calls"] = [*first["tool_calls"], *second["tool_calls"]]
    return joined


def _contents(first: Content, second: Content) -> Content:
    if not first or not second:
        return first or second
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}{BETWEEN}{second}"
    return [*_parts(first), {"type": "text", "text": BETWEEN}, *_parts(second)]


def _parts(content: Content) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
