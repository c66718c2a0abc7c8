"""The messages that stay in the prompt as they are, beside a summary."""

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.chat_schema import ChatMessage
from services.chat.compaction.item import is_summary
from services.chat.compaction.transcript import INSTRUCTION_ROLES, text_of

Chat = Sequence[ChatMessage]

IMAGE_BYTES = 4_000  # that an image counts as


@dataclass(frozen=True, slots=True)
class Split:
    past: Chat
    unanswered: Chat  # the user's last messages, or tool results with their calls

    @property
    def has_answers(self) -> bool:
        """Without any, a summary would hardly be shorter."""
        return any(message.role in ("assistant", "tool") for message in self.past)


def split_unanswered(messages: Chat) -> Split:
    start = len(messages)
    while start and messages[start - 1].role != "assistant":
        start -= 1
    if start and any(message.role == "tool" for message in messages[start:]):
        start -= 1  # the message with the calls
    return Split(messages[:start], messages[start:])


def instructions(messages: Chat) -> list[ChatMessage]:
    return [message for message in messages if message.role in INSTRUCTION_ROLES]


def retained(messages: Chat) -> list[ChatMessage]:
    """Instructions and user messages; a new summary covers earlier summaries."""
    return [each for each in messages if each.role in INSTRUCTION_ROLES or _is_user_message(each)]


def _is_user_message(message: ChatMessage) -> bool:
    return message.role == "user" and not is_summary(text_of(message))


def retained_within(messages: Chat, max_bytes: int) -> list[ChatMessage]:
    """Instructions, and the newest user messages that fit."""
    chosen: list[ChatMessage] = []
    for message in reversed(retained(messages)):
        if message.role == "user":
            max_bytes -= _size(message)
        if message.role != "user" or max_bytes >= 0:
            chosen.append(message)
    return chosen[::-1]


def _size(message: ChatMessage) -> int:
    parts = message.content if isinstance(message.content, list) else []
    images = [part for part in parts if part["type"] == "image_url"]
    return len(text_of(message).encode(errors="replace")) + IMAGE_BYTES * len(images)
