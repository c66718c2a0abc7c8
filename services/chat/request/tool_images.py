"""Images that tools return, as models see them: chat templates show images of the user's, and few show others."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from services.engine.base import Message

SHOWN_BELOW = "The result is shown in the next message."

ContentPart = dict[str, Any]


def shown_by_user(messages: Iterable[Message]) -> list[Message]:
    """Each turn's images of tools in the user's message that follows its results, in their order."""
    return list(_shown(messages))


def _shown(messages: Iterable[Message]) -> Iterator[Message]:
    images: list[ContentPart] = []
    for message in messages:
        if message["role"] == "tool":
            images += _images(message["content"])
            yield _without_images(message)
            continue
        if images and message["role"] == "user":
            yield {**message, "content": [*images, *_parts(message["content"])]}
        else:
            yield from _users(images)
            yield message
        images = []
    yield from _users(images)


def _users(images: Sequence[ContentPart]) -> list[Message]:
    return [{"role": "user", "content": list(images)}] if images else []


def _images(content: str | Sequence[ContentPart]) -> list[ContentPart]:
    return [] if isinstance(content, str) else [part for part in content if part["type"] == "image_url"]


def _without_images(message: Message) -> Message:
    if not _images(message["content"]):
        return message
    text = "".join(part["text"] for part in message["content"] if part["type"] == "text")
    return {**message, "content": text or SHOWN_BELOW}


def _parts(content: str | Sequence[ContentPart]) -> list[ContentPart]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
