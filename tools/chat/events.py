"""The events of a streamed response that a chat shows, read from the wire."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tools.chat.errors import ChatError

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Started:
    response_id: str


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The response as it ended: completed, incomplete or cancelled."""

    response: Json

    @property
    def id(self) -> str:
        return str(self.response["id"])

    @property
    def status(self) -> str:
        return str(self.response["status"])

    @property
    def text(self) -> str:
        return "".join(item_text(item) for item in self.response["output"] if item["type"] == "message")

    @property
    def last_item(self) -> str | None:
        output = self.response["output"]
        return str(output[-1]["id"]) if output else None

    @property
    def note(self) -> str | None:
        """Why it is no whole answer."""
        if self.status == "cancelled":
            return "Stopped."
        reason = (self.response.get("incomplete_details") or {}).get("reason")
        if self.status == "incomplete":
            limit = "Cut off: the token limit was reached."
            return limit if reason == "max_output_tokens" else "Incomplete: the answer broke off here."
        return None


Event = Started | Text | Reasoning | Answer


def item_text(item: Json) -> str:
    """The text of a message, whose content is a string or parts."""
    content = item.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))


def read_events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Raises ChatError for an answer that failed."""
    for data in _data_lines(chunks):
        if (event := _event(json.loads(data))) is not None:
            yield event


def _data_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Splits at newlines only: str.splitlines would split at characters that JSON has in its strings."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def _event(wire: Json) -> Event | None:
    match wire["type"]:
        case "response.created":
            return Started(wire["response"]["id"])
        case "response.output_text.delta":
            return Text(wire["delta"])
        case "response.reasoning_text.delta":
            return Reasoning(wire["delta"])
        case "response.completed" | "response.incomplete":
            return Answer(wire["response"])
        case "response.failed":
            raise ChatError((wire["response"]["error"] or {}).get("message") or "The answer failed")
        case "error":
            raise ChatError(wire["message"])
    return None
