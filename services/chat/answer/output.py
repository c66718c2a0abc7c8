"""Events -> the items that an answer adds up to."""

from typing import Any, Literal

from services.chat import call_items
from services.chat.answer.logprobs import token_logprob
from services.chat.events import Arguments, Compacted, Compacting, Finish, OutputEvent, Reasoning, Text, ToolCall
from services.chat.items import PREFIX, Item, output_text, reasoning
from services.engine.base import TokenLogprob


class OutputItems:
    """The fold of one choice's events into items, in the order in which they began.

    Their ids follow from the reply's: whoever folds the same events gets the same items.
    """

    def __init__(self, reply_id: str, *, logprobs: bool = False) -> None:
        self.items: list[Item] = []
        self._reply_id = reply_id
        self._logprobs = logprobs
        self._calls: list[int] = []  # where each is among the items
        self._searches: dict[int, str] = {}  # what has come of their arguments

    def add(self, event: OutputEvent | Compacting | Compacted) -> int | None:
        """The item it belongs to; None where there is nothing to show."""
        match event:
            case ToolCall():
                self._calls.append(self._begin(call_items.new_call_item(event)))
                return self._calls[-1]
            case Arguments(text, call):
                self._add_to_call(self._calls[call], text)
                return self._calls[call]
            case Text(text) | Reasoning(text):
                return self._add_text(event) if text or (event.logprobs and self._logprobs) else None
            case Compacting():
                return self._compaction()
            case Compacted(item):
                index = self._compaction()
                self.items[index] |= item
                return index

    def _add_text(self, event: Text | Reasoning) -> int:
        kind = "message" if isinstance(event, Text) else "reasoning"
        if not self.items or self.items[-1]["type"] != kind:
            self._begin(reasoning("") if kind == "reasoning" else _message())
        part = self.items[-1]["content"][0]
        part["text"] += event.text
        if kind == "message":
            part["logprobs"] += self.logprobs(event)
        return len(self.items) - 1

    def _compaction(self) -> int:
        """There is one, and it is the first."""
        return 0 if self.items else self._begin({"type": "compaction", "encrypted_content": ""})

    def _add_to_call(self, index: int, text: str) -> None:
        item = self.items[index]
        if key := call_items.STREAMED_KEYS.get(item["type"]):
            item[key] += text
            return
        self._searches[index] = searched = self._searches.get(index, "") + text
        item["arguments"] = call_items.parse_arguments(searched) if searched.rstrip().endswith("}") else {}

    def logprobs(self, event: OutputEvent) -> list[dict[str, Any]]:
        """Those that are wanted."""
        return [logprob(each) for each in event.logprobs] if self._logprobs else []

    def _begin(self, item: Item) -> int:
        same = sum(each["type"] == item["type"] for each in self.items)
        name = f"{PREFIX[item['type']]}_{self._reply_id}" + (f"_{same}" if same else "")
        self.items.append({"id": name, "status": "in_progress", **item})
        return len(self.items) - 1

    def end(self, status: Literal["completed", "incomplete"]) -> list[Item]:
        """What was begun is complete, but perhaps the last; an answer without a word is an empty message."""
        if not self.items and status == "completed":
            self._begin(_message())
        for item in self.items:
            item["status"] = "completed"
        if self.items:
            self.items[-1]["status"] = status
        return self.items


def _message() -> Item:
    return {"type": "message", "role": "assistant", "content": [output_text("")]}


def logprob(token: TokenLogprob) -> dict[str, Any]:
    return {**token_logprob(token), "top_logprobs": [token_logprob(each) for each in token.top]}


def status(finish: Finish | None) -> Literal["completed", "incomplete"]:
    return "completed" if finish is not None and finish.reason != "length" else "incomplete"
