"""Thoughts of earlier answers that come back sealed: in the signature of a thinking block without text, or as the data
of a redacted one.

What this server cannot open (another one sealed it, or it was sealed for another key) is left aside and named.
"""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from app.spec import Seal
from schemas.anthropic_block_schema import ContentBlockParam, RedactedThinkingBlock, ThinkingBlock
from schemas.anthropic_schema import CountRequest, MessageParam

R = TypeVar("R", bound=CountRequest)


def sealed(messages: Iterable[MessageParam]) -> Iterator[str]:
    """The places of the blocks whose thought nobody can read as they are."""
    for index, message in enumerate(messages):
        for place, block in enumerate(message.content):
            if _is_sealed(block):
                yield f"messages.{index}.content.{place}"


def opened(request: R, seal: Seal) -> R:
    """With the thoughts that the seal opens as text; other blocks keep their form and their place."""
    messages = [_message(message, seal) for message in request.messages]
    return request.model_copy(update={"messages": messages})


def _message(message: MessageParam, seal: Seal) -> MessageParam:
    if not any(map(_is_sealed, message.content)):
        return message
    return message.model_copy(update={"content": [_block(block, seal) for block in message.content]})


def _block(block: ContentBlockParam, seal: Seal) -> ContentBlockParam:
    match block:
        case ThinkingBlock(thinking="", signature=text) | RedactedThinkingBlock(data=text):
            thought = seal.open(text, "reasoning")
            return block if thought is None else _thinking(block, thought)
    return block


def _thinking(block: ContentBlockParam, thought: str) -> ThinkingBlock:
    """Unknown keys of the block stay, to be named."""
    opened = ThinkingBlock(type="thinking", thinking=thought)
    return opened.model_copy(update=(block.model_extra or {}) | opened.model_dump())


def _is_sealed(block: ContentBlockParam) -> bool:
    match block:
        case ThinkingBlock(thinking=text, signature=signature):
            return bool(signature) and not text
        case RedactedThinkingBlock():
            return True
    return False
