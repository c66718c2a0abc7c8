"""Anthropic's messages -> those of a chat completion, each with the place in the request that it comes from."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from app.spec import InvalidRequest
from app.spec.anthropic.blocks import JsonObject, call, parts, result
from schemas.anthropic_block_schema import (
    Block,
    ServerResultBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from schemas.anthropic_schema import MessageParam


@dataclass(slots=True)
class _MessageDraft:
    """A message that grows by blocks."""

    role: str
    content: list[JsonObject] = field(default_factory=list)
    calls: list[JsonObject] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)  # of its parts in the chat -> in the request

    def message(self) -> JsonObject | None:
        message: JsonObject = {"role": self.role}
        if self.content:
            message["content"] = self.content
        if self.calls:
            message["tool_calls"] = self.calls
        if self.thoughts:
            message["reasoning_content"] = "".join(self.thoughts)
            message.setdefault("content", "")
        return message if len(message) > 1 else None

    def add(self, found: list[JsonObject], place: str) -> None:
        for part in found:
            self.places[f"content.{len(self.content)}"] = place
            self.content.append(part)


class History:
    """Results of tools are messages of their own, in the place where they stand."""

    def __init__(self, system: list[TextBlock], messages: Iterable[MessageParam]) -> None:
        self.messages: list[JsonObject] = []
        self.places: dict[str, str] = {}  # dotted paths of the chat -> those of the request, which end there
        self._called: set[str] = set()
        if system:
            self._append({"role": "system", "content": "\n".join(block.text for block in system)}, "system")
        for index, message in enumerate(messages):
            self._add(message, f"messages.{index}")

    def _append(self, message: JsonObject, place: str, places: dict[str, str] | None = None) -> None:
        path = f"messages.{len(self.messages)}"
        self.places[path] = f"{place}."
        self.places |= {f"{path}.{name}": f"{origin}." for name, origin in (places or {}).items()}
        self.messages.append(message)

    def _add(self, message: MessageParam, place: str) -> None:
        draft = _MessageDraft(message.role)
        for index, block in enumerate(message.content):
            at = f"{place}.content.{index}"
            if isinstance(block, ToolResultBlock) or (
                isinstance(block, ServerResultBlock) and block.tool_use_id in self._called
            ):
                self._close(draft, place)
                self._result(block, at)
                draft = _MessageDraft(message.role)
            else:
                self._grow(draft, block, at)
        self._close(draft, place)

    def _close(self, draft: _MessageDraft, place: str) -> None:
        if message := draft.message():
            self._append(message, place, draft.places)

    def _grow(self, draft: _MessageDraft, block: Block, place: str) -> None:
        match block:
            case ToolUseBlock():
                self._called.add(block.id)
                draft.places[f"tool_calls.{len(draft.calls)}"] = place
                draft.calls.append(call(block))
            case ThinkingBlock(thinking=text) if text:
                draft.thoughts.append(text)
            case ServerResultBlock():  # whose call was left out of the history
                draft.add([{"type": "text", "text": result(block)}], place)
            case _:  # of a thought that nobody here can read there are none
                draft.add(parts(block, place), place)

    def _result(self, block: ToolResultBlock | ServerResultBlock, place: str) -> None:
        if block.tool_use_id not in self._called:
            param = f"{place}.tool_use_id"
            raise InvalidRequest(f"'{param}' is the id of no tool_use block before", param=param)
        draft = _MessageDraft("tool")
        if block.is_error:  # chat templates know no other way to say so
            draft.add([{"type": "text", "text": "Error: "}], place)
        if isinstance(block, ServerResultBlock):
            draft.add([{"type": "text", "text": result(block)}], place)
        else:
            for index, each in enumerate(block.content):
                at = f"{place}.content.{index}"
                draft.add(parts(each, at), at)
        message = {"role": "tool", "tool_call_id": block.tool_use_id, "content": draft.content or ""}
        self._append(message, place, draft.places)
