"""The item that a compaction becomes: a summary, sealed, which a later request brings or a stored conversation has.

It comes in two forms. A summary alone goes with what the client keeps before it: instructions and what the user said
still count, answers, calls and their results do not. With `before` and `after` it stands for all that came before it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.item_schema import OPENED
from services.chat.sealed import Seal

Item = dict[str, Any]

PREFACE = (
    "What follows are notes on this conversation so far. They stand for all that was said and done up to here, and is "
    "not shown any more. Go on from them."
)


@dataclass(frozen=True, slots=True)
class Compaction:
    """Items without ids."""

    summary: str
    before: tuple[Item, ...] | None = None  # None: what the client keeps
    after: tuple[Item, ...] = ()  # what nothing had answered yet

    def message(self) -> str:
        """Of the user's, in which the model reads the summary."""
        return f"{PREFACE}\n\n{self.summary}"


def is_summary(text: str) -> bool:
    return text.startswith(PREFACE)


def summary_of(text: str) -> str:
    return text.removeprefix(PREFACE).strip()


def sealed(compaction: Compaction, seal: Seal) -> Item:
    """Readable here as it is, and also for a server that only gets what is `shown` of it."""
    content = {"summary": compaction.summary, "before": compaction.before, "after": compaction.after}
    closed = seal.close(json.dumps(content, ensure_ascii=False), "compaction")
    return {"type": "compaction", "encrypted_content": closed, OPENED: content}


def opened(item: Item, seal: Seal) -> Item | None:
    """None for what was not sealed here, or not for this owner."""
    content = seal.open(item["encrypted_content"], "compaction")
    return None if content is None else item | {OPENED: json.loads(content)}


def content_of(item: Item) -> Compaction | None:
    """None as long as it is closed."""
    content = item.get(OPENED)
    if content is None:
        return None
    before = content["before"]
    return Compaction(content["summary"], None if before is None else tuple(before), tuple(content["after"]))


def shown(item: Mapping[str, Any]) -> Item:
    """Any item, as its owner sees it."""
    return {key: value for key, value in item.items() if key != OPENED}
