"""A branch as a file: Markdown or JSON, by the ending."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.chat.errors import ChatError
from tools.chat.tree import Node

NAMES = {"user": "You", "assistant": "Assistant", "system": "System"}


def save(path: Path, conversation: str, nodes: Sequence[Node]) -> None:
    """Raises ChatError for an unknown ending, and for a file that exists or cannot be written."""
    if (render := FORMATS.get(path.suffix.lower())) is None:
        raise ChatError(f"The name of the file ends in {' or '.join(FORMATS)}")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(render(conversation, nodes))
    except OSError as error:
        raise ChatError(f"{path}: {error.strerror}") from error


def _markdown(conversation: str, nodes: Sequence[Node]) -> str:
    messages = [node for node in nodes if node.item["type"] == "message"]
    return "\n\n".join(f"## {NAMES.get(node.role, node.role)}\n\n{node.text.strip()}" for node in messages) + "\n"


def _json(conversation: str, nodes: Sequence[Node]) -> str:
    items = [node.item for node in nodes]
    return json.dumps({"conversation_id": conversation, "items": items}, ensure_ascii=False, indent=2) + "\n"


Render = Callable[[str, Sequence[Node]], str]
FORMATS: dict[str, Render] = {".md": _markdown, ".json": _json}
