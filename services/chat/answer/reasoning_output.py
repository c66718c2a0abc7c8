"""The form in which a response's thoughts are answered: as they are, as a summary, sealed.

They are kept as they are. No model here writes a second text about its thoughts: a summary is the thought itself, or
its beginning where a `concise` one is asked for.
"""

import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from schemas.response_schema import SummaryMode
from services.chat.items import Item, reasoning_text

ENOUGH = 160  # characters of a beginning, which then goes on to the end of its sentence
MOST = 600  # of one that has no end
END = re.compile(rf"\n\s*\n|(?<=[.!?])\s(?<=[\s\S]{{{ENOUGH}}})|[。！？](?<=[\s\S]{{{ENOUGH}}})")


def beginning(text: str) -> str:
    """The first paragraph, or its first sentences. That of a text that grows only grows, up to its end."""
    text = text.lstrip()[:MOST]
    found = END.search(text)
    if found is None:
        return text.rstrip()
    return text[: found.end()].rstrip()


class ReasoningOutput:
    """Of one response. `seal` is given where the sealed text is asked for."""

    def __init__(self, summary: SummaryMode | None = None, seal: Callable[[str], str] | None = None) -> None:
        self._summary = summary
        self._seal = seal
        self._sealed: dict[str, str] = {}  # by the thought: it is shown more than once, and always the same

    @property
    def is_summarized(self) -> bool:
        return self._summary is not None

    def summary(self, text: str) -> str:
        return beginning(text) if self._summary == "concise" else text

    def shown(self, item: Item) -> Item:
        """A copy of it as it is answered."""
        item = deepcopy(item)
        if item["type"] != "reasoning":
            return item
        text = reasoning_text(item)
        if self.is_summarized:
            item.pop("content", None)
            item["summary"] = [summary_part(self.summary(text))] if text else []
        return item | ({"encrypted_content": self._encrypted(text)} if self._seal and text else {})

    def _encrypted(self, text: str) -> str:
        assert self._seal
        if text not in self._sealed:
            self._sealed[text] = self._seal(text)
        return self._sealed[text]


def summary_part(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}
