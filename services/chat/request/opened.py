"""Items that were sealed here, opened: their text is what a prompt has of them.

What this server cannot open (another one sealed it, or it was sealed for another key) is left aside and named; what the
item has besides, as a summary, still counts.
"""

from collections.abc import Iterable

from services.chat.compaction.item import open_item
from services.chat.items import Item, reasoning
from services.chat.sealed import Seal


def is_sealed(item: Item) -> bool:
    return item["type"] in ("reasoning", "compaction") and bool(item.get("encrypted_content"))


class Opened:
    """`unread` has the names of those that could not be opened."""

    def __init__(self, items: Iterable[Item], seal: Seal) -> None:
        self._seal = seal
        self.items: list[Item] = []
        self.unread: list[str] = []
        for index, item in enumerate(items):
            self.items.append(self._opened(item, f"input.{index}") if is_sealed(item) else item)

    def _opened(self, item: Item, place: str) -> Item:
        """It is stored so: it has to be found again after the secret has changed."""
        read = self._thought if item["type"] == "reasoning" else self._compaction
        if (opened := read(item)) is None:
            self.unread.append(f"{place}.encrypted_content")
        return opened or item

    def _thought(self, item: Item) -> Item | None:
        """With all of its text, of which the summary may be a part."""
        text = self._seal.open(item["encrypted_content"], "reasoning")
        return None if text is None else item | {"content": reasoning(text)["content"]}

    def _compaction(self, item: Item) -> Item | None:
        return open_item(item, self._seal)
