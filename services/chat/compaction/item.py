"""The `compaction` item: a sealed summary that later requests send back and stored conversations contain.

There are two forms. A summary alone is used together with the messages that the client keeps before it: instructions
and user messages still count, answers, calls and their results do not. With `before` and `after` the item replaces
everything that precedes it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.chat_schema import ChatMessage
from schemas.item_schema import COMPACTED
from services.chat.sealed import Seal

Item = dict[str, Any]

SUMMARY_PREFIX = (
    "What follows are notes on this conversation so far. They replace all that was said and done up to here and is not "
    "shown any more. Continue from them."
)


@dataclass(frozen=True, slots=True)
class Compaction:
    """`before` and `after` are items without ids."""

    summary: str
    before: tuple[Item, ...] | None = None  # None: the client keeps the messages before the item
    after: tuple[Item, ...] = ()  # what was not answered yet
    tools: tuple[Item, ...] = ()  # found by searches that are summarised: they can still be called

    def message(self) -> ChatMessage:
        """The user message that shows the summary to the model."""
        message = ChatMessage(role="user", content=f"{SUMMARY_PREFIX}\n\n{self.summary}")
        message.bring(list(self.tools))
        return message


def is_summary(text: str) -> bool:
    return text.startswith(SUMMARY_PREFIX)


def without_prefix(text: str) -> str:
    return text.removeprefix(SUMMARY_PREFIX).strip()


def seal_item(compaction: Compaction, seal: Seal) -> Item:
    """The item with its plain content, for storage; clients get what `public_item` leaves of it."""
    content = {name: getattr(compaction, name) for name in ("summary", "before", "after", "tools")}
    encrypted = seal.close(json.dumps(content, ensure_ascii=False), "compaction")
    return {"type": "compaction", "encrypted_content": encrypted, COMPACTED: content}


def open_item(item: Item, seal: Seal) -> Item | None:
    """None if it was sealed by another server, or for another owner."""
    content = seal.open(item["encrypted_content"], "compaction")
    return None if content is None else item | {COMPACTED: json.loads(content)}


def compaction_of(item: Item) -> Compaction | None:
    """None if the item was not opened."""
    content = item.get(COMPACTED)
    if content is None:
        return None
    before = content["before"]
    tools = tuple(content.get("tools", ()))  # earlier versions sealed none
    return Compaction(content["summary"], None if before is None else tuple(before), tuple(content["after"]), tools)


def public_item(item: Mapping[str, Any]) -> Item:
    """Any stored item, without the plain content of a compaction."""
    return {key: value for key, value in item.items() if key != COMPACTED}
