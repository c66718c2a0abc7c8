"""A conversation's items with their branches, as `GET /v1/conversations/{id}/tree` has them."""

from collections.abc import Iterable
from dataclasses import dataclass

from tools.chat.events import Json, item_text


@dataclass(frozen=True, slots=True)
class Node:
    item: Json
    parent: str  # empty: it is a first item

    @property
    def id(self) -> str:
        return str(self.item["id"])

    @property
    def role(self) -> str:
        return str(self.item.get("role", self.item["type"]))

    @property
    def is_question(self) -> bool:
        return self.item["type"] == "message" and self.role == "user"

    @property
    def text(self) -> str:
        return item_text(self.item)


class Tree:
    """`nodes`: oldest first."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._nodes = {node.id: node for node in nodes}

    @property
    def newest(self) -> str:
        return next(reversed(self._nodes), "")

    @property
    def tips(self) -> list[str]:
        """The last item of each branch, oldest first."""
        parents = {node.parent for node in self._nodes.values()}
        return [id for id in self._nodes if id not in parents]

    def branch(self, tip: str) -> list[Node]:
        """From its first item to `tip`."""
        nodes: list[Node] = []
        while (node := self._nodes.get(tip)) is not None:
            nodes.append(node)
            tip = node.parent
        return nodes[::-1]

    def last_question(self, tip: str) -> Node | None:
        return next((node for node in reversed(self.branch(tip)) if node.is_question), None)
