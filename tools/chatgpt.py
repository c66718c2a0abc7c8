"""ChatGPT's export, `conversations.json`, as conversations of ours: its trees stay trees.

What is no text (images, which the export does not hold, and the work of tools) is left out; what was said after it goes
on from what was said before. Of what was spoken there is the text.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tools.archive_schema import ArchivedConversation, ArchivedItem

TEXTS = ("text", "multimodal_text")
KINDS = {"user": "input_text", "system": "input_text", "assistant": "output_text"}


class Author(BaseModel):
    role: str


class Content(BaseModel):
    content_type: str
    parts: list[Any] = Field([])


class Said(BaseModel):
    id: str
    author: Author
    content: Content
    create_time: float | None = None
    recipient: str = "all"


class Node(BaseModel):
    id: str
    message: Said | None = None
    parent: str | None = None
    children: list[str] = Field([])


class Export(BaseModel):
    model_config = ConfigDict(extra="ignore")

    id: str | None = None
    conversation_id: str | None = None
    title: str | None = None
    create_time: float | None = None
    update_time: float | None = None
    current_node: str | None = None
    mapping: dict[str, Node]

    @property
    def begun_at(self) -> float:
        """Now and then only its messages say so."""
        said = [node.message.create_time for node in self.mapping.values() if node.message]
        return self.create_time or min(filter(None, said), default=0.0)


def conversation(export: Export) -> ArchivedConversation:
    """The same each time, so that what was imported before is known again."""
    name = export.conversation_id or export.id or f"{export.title} {export.begun_at}"
    return ArchivedConversation(
        id="conv_" + hashlib.sha256(f"chatgpt {name}".encode()).hexdigest()[:32],
        title=export.title,
        created_at=export.begun_at,
        updated_at=export.update_time or export.begun_at,
        items=list(_items(export)),
    )


def _items(export: Export) -> Iterator[ArchivedItem]:
    place: dict[str | None, str | None] = {}  # a node -> the item that its children go on from
    for node in _in_order(export):
        parent = place.get(node.parent)
        text = _text(node.message) if node.message else ""
        place[node.id] = parent
        if node.message and text:
            item = _message(node.message, text)
            place[node.id] = item["id"]
            at = node.message.create_time or export.begun_at
            yield ArchivedItem(data=item, parent_id=parent, created_at=at)


def _in_order(export: Export) -> Iterator[Node]:
    """Parents first, and the branch that was looked at last: the next answer goes on from there."""
    nodes = export.mapping
    current, at = set(), export.current_node
    while at in nodes and at not in current:
        current.add(at)
        at = nodes[at].parent
    waiting = [node for node in nodes.values() if node.parent not in nodes]
    seen: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node.id in seen:
            continue
        seen.add(node.id)
        yield node
        children = [nodes[child] for child in node.children if child in nodes]
        waiting += sorted(children, key=lambda child: child.id not in current)


def _text(message: Said) -> str:
    if message.author.role not in KINDS or message.recipient != "all" or message.content.content_type not in TEXTS:
        return ""
    return "\n".join(map(_text_of, message.content.parts)).strip()


def _text_of(part: object) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    return text if isinstance(text, str) else ""


def _message(message: Said, text: str) -> dict[str, Any]:
    role = message.author.role
    more: dict[str, Any] = {"annotations": [], "logprobs": []} if role == "assistant" else {}
    return {
        "id": "msg_" + message.id.replace("-", ""),
        "type": "message",
        "role": role,
        "content": [{"type": KINDS[role], "text": text, **more}],
        "status": "completed",
    }
