"""What of a conversation stays as it was said beside its summary."""

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.chat_schema import ChatMessage
from services.chat.compaction.item import is_summary
from services.chat.compaction.transcript import INSTRUCTIONS, text_of

Chat = Sequence[ChatMessage]

IMAGE = 4_000  # bytes that one costs as much as


@dataclass(frozen=True, slots=True)
class Parts:
    past: Chat
    open: Chat  # what nothing has answered yet: of the user's, or results with their calls

    @property
    def has_answers(self) -> bool:
        """Of anything less a summary would be no shorter."""
        return any(message.role in ("assistant", "tool") for message in self.past)


def parted(messages: Chat) -> Parts:
    start = len(messages)
    while start and messages[start - 1].role != "assistant":
        start -= 1
    if start and any(message.role == "tool" for message in messages[start:]):
        start -= 1
    return Parts(messages[:start], messages[start:])


def instructions(messages: Chat) -> list[ChatMessage]:
    return [message for message in messages if message.role in INSTRUCTIONS]


def kept(messages: Chat) -> list[ChatMessage]:
    """What still counts beside a new summary: instructions, and what the user said."""
    return [each for each in messages if each.role in INSTRUCTIONS or _is_users(each)]


def _is_users(message: ChatMessage) -> bool:
    return message.role == "user" and not is_summary(text_of(message))


def newest(messages: Chat, budget: int) -> list[ChatMessage]:
    """Of what is kept of them instructions, and of what the user said the newest, of so many bytes together."""
    chosen: list[ChatMessage] = []
    for message in reversed(kept(messages)):
        if message.role == "user":
            budget -= _size(message)
        if message.role != "user" or budget >= 0:
            chosen.append(message)
    return chosen[::-1]


def _size(message: ChatMessage) -> int:
    parts = message.content if isinstance(message.content, list) else []
    images = [part for part in parts if part["type"] == "image_url"]
    return len(text_of(message).encode(errors="replace")) + IMAGE * len(images)
