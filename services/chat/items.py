"""Items <-> chat messages.

An item is JSON in the form that `schemas/item_schema.py` gives it. One assistant's message of a chat is several items:
its reasoning, its text, each of its calls.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from pydantic import ValidationError

from schemas.chat_schema import ChatMessage
from schemas.file_schema import FILE_SOURCES
from schemas.item_schema import UNREAD
from schemas.tool_schema import CustomToolCall, MessageToolCall
from services.chat import foreign_items
from services.chat.call_items import custom_tool_call, function_call
from services.chat.compaction.item import compaction_of
from services.chat.compaction.window import retained
from services.chat.names import SEARCH, flat_name, found
from services.errors import InvalidRequest

Item = dict[str, Any]
ContentPart = dict[str, Any]

PREFIX = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
    "compaction": "cmp",
    "tool_search_call": "tsc",
    "tool_search_output": "tso",
}


def new_id(item: Item) -> str:
    return f"{PREFIX.get(item['type'], 'item')}_{uuid4().hex}"


def check(items: Iterable[Item], param: str = "input") -> None:
    """Refuses by name what no prompt can have. References are to be resolved before."""
    for index, item in enumerate(items):
        _check(item, f"{param}.{index}")


def _check(item: Item, place: str) -> None:
    kind = item["type"]
    if kind not in READERS and kind not in UNREAD:
        raise InvalidRequest(f"Items of type '{kind}' are not supported by this server", param=f"{place}.type")
    name, parts = _parts_of(item)
    for index, part in enumerate(parts):
        if (why := _refused(part)) is not None:
            raise InvalidRequest(why, param=f"{place}.{name}.{index}")


PARTS_IN = {
    "message": "content",
    "reasoning": "content",
    "function_call_output": "output",
    "custom_tool_call_output": "output",
}


def _parts_of(item: Item) -> tuple[str, list[ContentPart]]:
    name = PARTS_IN.get(item["type"], "")
    parts = item.get(name, [])
    return name, [] if isinstance(parts, str) else parts


def _refused(part: ContentPart) -> str | None:
    if part["type"] not in PART_OF:
        return f"Parts of type '{part['type']}' are not supported by this server"
    if (sources := SOURCES_OF.get(part["type"])) and sum(bool(part.get(name)) for name in sources) != 1:
        return f"A part of type '{part['type']}' needs one of {', '.join(sources)}, and no other"
    return None


def to_messages(items: Sequence[Item], history: Sequence[ChatMessage] = ()) -> list[ChatMessage]:
    """What a prompt is made of: the items after the history. Reasoning, text and calls that follow each other are one
    message of the assistant's; a compaction stands for what comes before it."""
    try:
        check(items)
        script = _MessageBuilder(history)
        for item in items:
            if item["type"] not in UNREAD:
                READERS[item["type"]](script, item)
        return script.end()
    except (KeyError, TypeError, AttributeError, ValidationError) as error:  # of an import that nobody checked
        raise InvalidRequest("An item that was stored is not whole: no prompt can have it", param="input") from error


class _MessageBuilder:
    """Chat messages being written; the assistant's is kept open for what still belongs to it."""

    def __init__(self, history: Sequence[ChatMessage]) -> None:
        self._messages = list(history)
        self._open: dict[str, Any] = {}
        self._call_ids: dict[str, str] = {}  # of calls' items -> their calls

    def end(self) -> list[ChatMessage]:
        if self._open:
            if not self._open.keys() & {"content", "refusal", "tool_calls"}:
                self._open["content"] = ""  # it was cut short before its first text
            self._add({"role": "assistant", **self._open})
            self._open = {}
        return self._messages

    def _add(self, message: dict[str, Any]) -> None:
        try:
            self._messages.append(ChatMessage.model_validate(message))
        except ValidationError as error:
            why = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise InvalidRequest(f"An item cannot be part of a prompt: {why}", param="input") from error

    def message(self, item: Item) -> None:
        fields = _content(item["content"]) | ({"name": item["name"]} if "name" in item else {})
        if item["role"] != "assistant":
            self.end()
            self._add({"role": item["role"], **fields})
            return
        if self._open.keys() - {"reasoning_content"}:
            self.end()
        self._open |= fields

    def reasoning(self, item: Item) -> None:
        if self._open.keys() - {"reasoning_content"}:
            self.end()
        if thought := reasoning_text(item):
            self._open["reasoning_content"] = self._open.get("reasoning_content", "") + thought

    def compaction(self, item: Item) -> None:
        if (found := compaction_of(item)) is None:  # sealed elsewhere
            return
        self.end()
        self._messages = retained(self._messages) if found.before is None else to_messages(found.before)
        self._messages += [found.message(), *to_messages(found.after)]

    def compaction_trigger(self, item: Item) -> None:
        """Says nothing to a model."""

    def function_call(self, item: Item) -> None:
        self._call(item["call_id"], flat_name(item), item["arguments"])

    def custom_tool_call(self, item: Item) -> None:
        custom = {"name": flat_name(item), "input": item["input"]}
        self._add_call({"id": item["call_id"], "type": "custom", "custom": custom})

    def tool_search_call(self, item: Item) -> None:
        if item.get("execution") == "client":  # others ran where they were called
            self._call(item["call_id"], SEARCH, json.dumps(item.get("arguments") or {}, ensure_ascii=False))

    def tool_search_output(self, item: Item) -> None:
        if item.get("execution") == "client":
            self._result(item["call_id"], found(item["tools"]))
            self._messages[-1].bring(item["tools"])

    def function_call_output(self, item: Item) -> None:
        self._result(item["call_id"], item["output"])

    def foreign_call(self, item: Item) -> None:
        call = foreign_items.call(item)
        self._call_ids[item.get("id", call.id)] = call.id
        self._call(call.id, call.name, call.arguments)
        if call.result is not None:
            self._result(call.id, call.result)

    def foreign_output(self, item: Item) -> None:
        id = foreign_items.answered_call_id(item)
        self._result(self._call_ids.get(id, id), foreign_items.output(item))

    def _call(self, id: str, name: str, arguments: str) -> None:
        self._add_call({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})

    def _add_call(self, call: dict[str, Any]) -> None:
        self._open["tool_calls"] = [*self._open.get("tool_calls", []), call]

    def _result(self, call_id: str, output: str | list[ContentPart]) -> None:
        self.end()
        content = output if isinstance(output, str) else [_as_chat(part) for part in output]
        self._add({"role": "tool", "tool_call_id": call_id, "content": content or ""})


READERS: dict[str, Callable[[_MessageBuilder, Item], None]] = {
    "message": _MessageBuilder.message,
    "reasoning": _MessageBuilder.reasoning,
    "compaction": _MessageBuilder.compaction,
    "compaction_trigger": _MessageBuilder.compaction_trigger,
    "function_call": _MessageBuilder.function_call,
    "function_call_output": _MessageBuilder.function_call_output,
    "custom_tool_call": _MessageBuilder.custom_tool_call,
    "custom_tool_call_output": _MessageBuilder.function_call_output,
    "tool_search_call": _MessageBuilder.tool_search_call,
    "tool_search_output": _MessageBuilder.tool_search_output,
    **dict.fromkeys(foreign_items.CALLS, _MessageBuilder.foreign_call),
    **dict.fromkeys(foreign_items.OUTPUTS, _MessageBuilder.foreign_output),
}

# An item's part -> the chat's part it is.
PART_OF = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "summary_text": "text",
    "reasoning_text": "text",
    "refusal": "refusal",
    "input_image": "image_url",
    "input_file": "file",
}

# Where what such a part stands for is; it has one of them.
SOURCES_OF = {"input_image": ("image_url", "file_id"), "input_file": FILE_SOURCES}


def _content(parts: Sequence[ContentPart]) -> dict[str, Any]:
    """A single text, or none at all, as a string; a refusal at the end as the field it has in a chat."""
    content = [_as_chat(part) for part in parts]
    refusal = {"refusal": content.pop()["refusal"]} if content and content[-1]["type"] == "refusal" else {}
    if refusal and not content:
        return refusal
    if len(content) == 1 and content[0]["type"] == "text":
        return {"content": content[0]["text"], **refusal}
    return {"content": content or "", **refusal}


def _as_chat(part: ContentPart) -> ContentPart:
    match PART_OF[part["type"]]:
        case "refusal":
            return {"type": "refusal", "refusal": part["refusal"]}
        case "image_url":
            image = {"file_id": part["file_id"]} if part.get("file_id") else {"url": part["image_url"]}
            return {"type": "image_url", "image_url": image | {"detail": part.get("detail", "auto")}}
        case "file":
            return {"type": "file", "file": _present(part, *FILE_SOURCES, "filename")}
        case _:
            return {"type": "text", "text": part["text"]}


def chat_content(parts: Sequence[ContentPart]) -> str | list[ContentPart]:
    """A message's content the way a chat has it; parts that a chat knows not are as they are."""
    content = [_as_chat(part) if _is_whole(part) else part for part in parts]
    return (
        content[0]["text"]
        if len(content) == 1 and content[0].get("type") == "text" and "text" in content[0]
        else content
    )


def _is_whole(part: ContentPart) -> bool:
    """One that a chat knows, with what it must have."""
    kind = part.get("type", "")
    return kind in PART_OF and any(part.get(name) is not None for name in SOURCES_OF.get(kind, (PART_OF[kind],)))


def _present(part: ContentPart, *names: str) -> ContentPart:
    return {name: part[name] for name in names if part.get(name)}


def text(items: Iterable[Item]) -> str:
    """The text of messages, without reasoning."""
    parts = [part for item in items if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts if part["type"] == "output_text")


def from_messages(messages: Iterable[ChatMessage]) -> list[Item]:
    """The items of a chat, without ids."""
    return [item for message in messages for item in _items(message)]


def _items(message: ChatMessage) -> list[Item]:
    if message.role == "tool":
        return [_call_output(message)]
    items = [reasoning(message.reasoning_content)] if message.reasoning_content else []
    if message.content is not None or message.refusal is not None:
        items.append(_message_item(message))
    return items + list(map(_call_item, message.tool_calls))


def _call_item(call: MessageToolCall | CustomToolCall) -> Item:
    if isinstance(call, CustomToolCall):
        return custom_tool_call(call.id, call.custom.name, call.custom.input)
    return function_call(call.id, call.function.name, call.function.arguments)


def _message_item(message: ChatMessage) -> Item:
    content = message.content if message.content is not None else []
    parts: list[ContentPart] = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    if message.refusal is not None:
        parts.append({"type": "refusal", "refusal": message.refusal})
    kind = "output_text" if message.role == "assistant" else "input_text"
    item = {"type": "message", "role": message.role, "content": [_as_item(part, kind) for part in parts]}
    return item | ({"name": message.name} if message.name is not None else {})


def _call_output(message: ChatMessage) -> Item:
    if message.found_tools:
        return _search_output(message)
    content = message.content
    output = [_as_item(part, "input_text") for part in content] if isinstance(content, list) else content or ""
    return {"type": "function_call_output", "call_id": message.tool_call_id, "output": output}


def _search_output(message: ChatMessage) -> Item:
    call = {"call_id": message.tool_call_id, "execution": "client"}
    return {"type": "tool_search_output", **call, "tools": message.found_tools}


def _as_item(part: Mapping[str, Any], text_kind: str) -> ContentPart:
    match part["type"]:
        case "refusal":
            return {"type": "refusal", "refusal": part["refusal"]}
        case "image_url":
            image = part["image_url"]
            source = {"file_id": image["file_id"]} if image.get("file_id") else {"image_url": image["url"]}
            return {"type": "input_image", **source, "detail": image.get("detail") or "auto"}
        case "file":
            return {"type": "input_file", **part["file"]}
        case _:
            return output_text(part["text"]) if text_kind == "output_text" else _input_text(part["text"])


def _input_text(text: str) -> ContentPart:
    return {"type": "input_text", "text": text}


def output_text(text: str) -> ContentPart:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def reasoning_text(item: Item) -> str:
    return "".join(part["text"] for part in item.get("content") or item.get("summary", []))


def reasoning(text: str) -> Item:
    return {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}
