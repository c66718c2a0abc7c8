"""How a model is shown the tools it may call: by its chat template, or in words where the template shows none."""

import json
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

from schemas.tool_schema import Function, Tool
from services.chat.formats.base import ChatFormat, ToolFormat
from services.chat.request.single_calls import single_calls
from services.chat.request.tool_selection import ToolSelection
from services.engine.base import Message


def declarations(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """As chat templates, and models, read them."""
    return [{"type": "function", "function": _declaration(tool.function)} for tool in tools]


def _declaration(function: Function) -> dict[str, Any]:
    declaration = {"name": function.name, "description": function.description or "", "parameters": function.parameters}
    return declaration if function.parameters else {**declaration, "parameters": {"type": "object", "properties": {}}}


def render_tools(messages: list[Message], selection: ToolSelection | None, format: ChatFormat) -> list[Message]:
    """For a template that shows tools the messages as it takes them, for another one with all of it put into words."""
    rendered = list(
        _as_template_takes(messages, format) if format.shows_calls else _without_tools(messages, format.tools)
    )
    if not selection or (format.shows_tools and not format.tools_in_message):
        return rendered
    if format.tools_in_message:
        return _with_tools_field(rendered, selection)
    return _introduced(rendered, _introduction(selection, format.tools), format)


def _as_template_takes(messages: list[Message], format: ChatFormat) -> Iterator[Message]:
    given = messages if format.tools.between else single_calls(messages)
    for message in _with_template_ids(given, format.tools):
        shown = _with_calls_as_text(message, format.tools) if format.calls_as_text else message
        yield {**shown, "role": format.result_role} if shown["role"] == "tool" else shown


def _with_tools_field(messages: list[Message], selection: ToolSelection) -> list[Message]:
    """The system's message has them as JSON, as Phi-4-mini's template reads them."""
    system, rest = ({"role": "system", "content": ""}, messages)
    if messages and messages[0]["role"] == "system":
        system, *rest = messages
    functions = [each["function"] for each in declarations(selection.tools)]
    return [{**system, "tools": json.dumps(functions, ensure_ascii=False)}, *rest]


def _introduction(selection: ToolSelection, tools: ToolFormat) -> str:
    shown = "\n".join(json.dumps(each["function"], ensure_ascii=False) for each in declarations(selection.tools))
    again = " Several can be called at once." if selection.parallel and tools.between else ""
    return (
        f"You can call these functions, described with JSON schemas of their parameters:\n{shown}\n\n"
        f"To call a function, answer with nothing but this, and its result will be given to you:\n{tools.example()}\n"
        f"{'Call one now.' if selection.must else 'Call one only if it helps to answer.'}{again}"
    )


def _introduced(messages: list[Message], text: str, format: ChatFormat) -> list[Message]:
    role = "system" if format.takes_system else "user"
    if messages and messages[0]["role"] == role and isinstance(messages[0]["content"], str):
        first, *rest = messages
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *rest]
    return [{"role": role, "content": text}, *messages]


def _without_tools(messages: Iterable[Message], tools: ToolFormat) -> Iterator[Message]:
    """Calls as the assistant wrote them; results as the user's, those of one turn in one message."""
    results: list[str] = []
    names: dict[str, str] = {}
    for message in messages:
        if message["role"] == "tool":
            results.append(f"Result of {names.get(message['tool_call_id'], 'the function')}:\n{message['content']}")
            continue
        if results:
            yield {"role": "user", "content": "\n\n".join(results)}
            results = []
        names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls", ())}
        yield _with_calls_as_text(message, tools)
    if results:
        yield {"role": "user", "content": "\n\n".join(results)}


def _with_calls_as_text(message: Message, tools: ToolFormat) -> Message:
    if not message.get("tool_calls"):
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    text = tools.write([(each["name"], _as_text(each["arguments"])) for each in functions])
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": f"{message['content']}\n{text}" if message["content"] else text}


def _as_text(arguments: object) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _with_template_ids(messages: Iterable[Message], tools: ToolFormat) -> Iterator[Message]:
    ids: dict[str, str] = {}
    places = count()
    for message in messages:
        changed = dict(message)
        if "tool_calls" in message:
            calls = message["tool_calls"]
            ids |= {each["id"]: tools.call_id(each["id"], each["function"]["name"], next(places)) for each in calls}
            changed["tool_calls"] = [{**each, "id": ids[each["id"]]} for each in calls]
        if "tool_call_id" in message:
            changed["tool_call_id"] = ids.get(message["tool_call_id"], message["tool_call_id"])
        yield changed
