"""Converts ChatGPT's export, `conversations.json`, to conversations, as the same trees.

Only texts are imported, and transcripts of speech. Other nodes (images, which the export does not contain, and tool
work) are left out; their children become children of their parent.
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


class ExportedMessage(BaseModel):
    id: str
    author: Author
    content: Content
    create_time: float | None = None
    recipient: str = "all"


class Node(BaseModel):
    id: str
    message: ExportedMessage | None = None
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
        """Some exports have times in messages only."""
        times = [node.message.create_time for node in self.mapping.values() if node.message]
        return self.create_time or min(filter(None, times), default=0.0)


def conversation(export: Export) -> ArchivedConversation:
    """Deterministic ids, so that a repeated import is recognised."""
    name = export.conversation_id or export.id or f"{export.title} {export.begun_at}"
    return ArchivedConversation(
        id="conv_" + hashlib.sha256(f"chatgpt {name}".encode()).hexdigest()[:32],
        title=export.title,
        created_at=export.begun_at,
        updated_at=export.update_time or export.begun_at,
        items=list(_items(export)),
    )


def _items(export: Export) -> Iterator[ArchivedItem]:
    parent_of: dict[str | None, str | None] = {}  # node id -> parent item of its children
    for node in _in_order(export):
        parent = parent_of.get(node.parent)
        text = _text(node.message) if node.message else ""
        parent_of[node.id] = parent
        if node.message and text:
            item = _message(node.message, text)
            parent_of[node.id] = item["id"]
            at = node.message.create_time or export.begun_at
            yield ArchivedItem(data=item, parent_id=parent, created_at=at)


def _in_order(export: Export) -> Iterator[Node]:
    """Parents first, and the current branch last, so that the next answer continues it."""
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


def _text(message: ExportedMessage) -> str:
    if message.author.role not in KINDS or message.recipient != "all" or message.content.content_type not in TEXTS:
        return ""
    return "\n".join(map(_text_of, message.content.parts)).strip()


def _text_of(part: object) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    return text if isinstance(text, str) else ""


def _message(message: ExportedMessage, text: str) -> dict[str, Any]:
    role = message.author.role
    more: dict[str, Any] = {"annotations": [], "logprobs": []} if role == "assistant" else {}
    return {
        "id": "msg_" + message.id.replace("-", ""),
        "type": "message",
        "role": role,
        "content": [{"type": KINDS[role], "text": text, **more}],
        "status": "completed",
    }
