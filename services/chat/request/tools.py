"""The tools of a request: which may be called, and how models are told of them whose templates show none."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from schemas.chat_schema import ChatCompletionRequest
from schemas.tool_schema import (
    AllowedTools,
    ChosenCustom,
    ChosenTool,
    CustomTool,
    Function,
    Grammar,
    One,
    Tool,
)
from services.chat.dialects import Calls, Dialect
from services.chat.events import Callee
from services.chat.request import custom_tools
from services.chat.request.response_tools import FlatRequest
from services.engine.base import Message
from services.errors import InvalidRequest

MAX_DEPTH = 100  # of a schema
TYPES = {"array", "boolean", "integer", "null", "number", "object", "string"}


@dataclass(frozen=True, slots=True)
class Offer:
    """What an answer may call."""

    tools: tuple[Tool, ...]  # shown to the model
    callable: tuple[Function, ...]
    must: bool
    parallel: bool
    params: tuple[str, ...]  # where the form of what each takes is in the request
    callees: Mapping[str, Callee] = field(default_factory=dict)  # those that are no functions of the same name
    grammars: Mapping[str, Grammar] = field(default_factory=dict)  # of custom tools, by name

    @property
    def names(self) -> frozenset[str]:
        return frozenset(each.name for each in self.callable)


def offer(request: ChatCompletionRequest) -> Offer | None:
    """None: nothing may be called, and the model is told of no tools."""
    choice, served = request.tool_choice or "auto", list(_served(request))
    if not served or choice == "none":
        return None
    names = _chosen(choice)
    may = [each for each in served if names is None or (each.type, each.function.name) in names]
    # of the allowed ones only is the model told, that it calls no other where nothing forces it
    shown = may if isinstance(choice, AllowedTools) else served
    return Offer(
        tools=tuple(Tool(type="function", function=each.function) for each in shown),
        callable=tuple(each.function for each in may),
        must=choice == "required" or isinstance(choice, One) or _is_required(choice),
        parallel=request.parallel_tool_calls and not isinstance(choice, One),
        params=tuple(each.form for each in may),
        callees={each.function.name: each.callee for each in may if each.callee},
        grammars={each.function.name: each.grammar for each in may if each.grammar},
    )


@dataclass(frozen=True, slots=True)
class Served:
    type: Literal["function", "custom"]
    function: Function  # as the model knows it
    place: str  # in the request
    callee: Callee | None = None
    grammar: Grammar | None = None

    @property
    def form(self) -> str:
        """Where that of its arguments is in the request."""
        return f"{self.place}.parameters" if self.type == "function" else f"{self.place}.format"


def _served(request: ChatCompletionRequest) -> Iterator[Served]:
    """Tools of other kinds are only offered: they are left aside."""
    flat = request.flat if isinstance(request, FlatRequest) else {}
    for index, tool in enumerate(request.tools):
        known = flat.get(index)
        place = known.place if known else f"tools.{index}.{tool.type}"
        match tool:
            case Tool():
                yield Served("function", tool.function, place, known.callee if known else None)
            case CustomTool(custom=custom):
                callee = known.callee if known else Callee(custom.name, "custom")
                yield Served("custom", custom_tools.as_function(custom), place, callee, custom.grammar)


def _chosen(choice: str | One | AllowedTools) -> set[tuple[str, str]] | None:
    """Types and names."""
    match choice:
        case ChosenTool() | ChosenCustom():
            return {(choice.type, choice.name)}
        case AllowedTools():
            return {(each.type, each.name) for each in choice.allowed_tools.tools if isinstance(each, One)}
        case _:
            return None


def _is_required(choice: str | One | AllowedTools) -> bool:
    return isinstance(choice, AllowedTools) and choice.allowed_tools.mode == "required"


# --- what is wrong with a request ---


def check(request: ChatCompletionRequest) -> None:
    if request.tool_choice not in (None, "none", "auto"):
        _check_forced(request)
    names: set[str] = set()
    kinds: set[tuple[str, str]] = set()
    for each in _served(request):
        if each.function.name in names:
            param = f"{each.place}.name"
            raise InvalidRequest(f"'{param}': two tools have the same name", param=param)
        names.add(each.function.name)
        kinds.add((each.type, each.function.name))
        check_parameters(each.function.parameters, each.form)
    if not (_chosen(request.tool_choice or "auto") or set()) <= kinds:
        raise InvalidRequest("'tool_choice' names a tool that is not among 'tools'", param="tool_choice")


def _check_forced(request: ChatCompletionRequest) -> None:
    """An answer without a call that it is to have would be wrong."""
    if not request.tools:
        raise InvalidRequest("'tool_choice' goes with 'tools' only", param="tool_choice")
    if not any(_served(request)) or _chosen(request.tool_choice or "auto") == set():
        raise InvalidRequest("'tool_choice' leaves only tools of kinds that are not served here", param="tool_choice")


def check_parameters(schema: Mapping[str, Any], param: str) -> None:
    """As far as it can be seen without a grammar."""
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise InvalidRequest(f"'{param}': the schema of arguments has the type 'object'", param=param)
    if _is_deep(schema):
        raise InvalidRequest(f"'{param}' is nested more than {MAX_DEPTH} levels deep", param=param)
    wrong = next(_flaws(schema), None)
    if wrong:
        raise InvalidRequest(f"'{param}' is no JSON schema: '{wrong}' is not what it must be", param=param)


def _is_deep(schema: object) -> bool:
    level = [schema]
    for _ in range(MAX_DEPTH):
        inside = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [value for values in inside for value in values]
    return bool(level)


def _flaws(schema: object) -> Iterator[str]:
    """Keywords whose values can be none."""
    left = [schema]
    while left:
        match left.pop():
            case bool():
                continue
            case dict() as found:
                yield from (key for key, is_one in KEYWORDS.items() if key in found and not is_one(found[key]))
                for key in ("properties", "$defs", "definitions", "patternProperties"):
                    if isinstance(found.get(key), dict):
                        left.extend(found[key].values())
                for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
                    if isinstance(found.get(key), list):
                        left.extend(found[key])
                left.extend(found[key] for key in ("items", "not", "additionalProperties") if key in found)
            case list() as found:  # items, as drafts before 2020 have them
                left.extend(found)
            case _:
                yield "schema"


def _is_type(value: object) -> bool:
    named = value if isinstance(value, list) else [value]
    return bool(named) and all(isinstance(each, str) and each in TYPES for each in named)


KEYWORDS: dict[str, Callable[[object], bool]] = {
    "type": _is_type,
    "properties": lambda value: isinstance(value, dict),
    "required": lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
    "enum": lambda value: isinstance(value, list),
    "anyOf": lambda value: isinstance(value, list),
    "oneOf": lambda value: isinstance(value, list),
    "allOf": lambda value: isinstance(value, list),
    "$ref": lambda value: isinstance(value, str),
    "pattern": lambda value: isinstance(value, str),
}


def check_results(messages: Iterable[Message], num_past: int) -> None:
    """Each result is of a call that was made. The first messages are those of the conversation."""
    called: set[str] = set()
    for place, message in enumerate(messages, -num_past):
        called |= {call["id"] for call in message.get("tool_calls", ())}
        if message["role"] == "tool" and message.get("tool_call_id") not in called:
            param = f"messages.{place}.tool_call_id" if place >= 0 else "conversation"
            raise InvalidRequest(f"'{param}': a tool's result is of no call that was made before", param=param)


# --- what the model is told ---


def declared(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """As chat templates, and models, read them."""
    return [{"type": "function", "function": _declaration(tool.function)} for tool in tools]


def _declaration(function: Function) -> dict[str, Any]:
    said = {"name": function.name, "description": function.description or "", "parameters": function.parameters}
    return said if function.parameters else {**said, "parameters": {"type": "object", "properties": {}}}


def told(messages: list[Message], offer: Offer | None, dialect: Dialect) -> list[Message]:
    """For a template that shows tools the messages as they are, for another one with all of it put into words."""
    if dialect.shows_tools:
        return [_with_short_ids(each) for each in messages] if dialect.calls.short_ids else messages
    said = list(_without_tools(messages, dialect.calls))
    return _introduced(said, _introduction(offer, dialect.calls), dialect) if offer else said


def _introduction(offer: Offer, calls: Calls) -> str:
    tools = "\n".join(json.dumps(each["function"], ensure_ascii=False) for each in declared(offer.tools))
    example = calls.write([("NAME", '{"PARAMETER": VALUE}')])
    again = " Several can be called at once." if offer.parallel and calls.between else ""
    return (
        f"You can call these functions, described with JSON schemas of their parameters:\n{tools}\n\n"
        f"To call a function, answer with nothing but this, and its result will be given to you:\n{example}\n"
        f"{'Call one now.' if offer.must else 'Call one only if it helps to answer.'}{again}"
    )


def _introduced(messages: list[Message], text: str, dialect: Dialect) -> list[Message]:
    role = "system" if dialect.takes_system else "user"
    if messages and messages[0]["role"] == role and isinstance(messages[0]["content"], str):
        first, *rest = messages
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *rest]
    return [{"role": role, "content": text}, *messages]


def _without_tools(messages: Iterable[Message], calls: Calls) -> Iterator[Message]:
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
        yield _with_calls_as_text(message, calls)
    if results:
        yield {"role": "user", "content": "\n\n".join(results)}


def _with_calls_as_text(message: Message, calls: Calls) -> Message:
    if not message.get("tool_calls"):
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    text = calls.write([(each["name"], _as_text(each["arguments"])) for each in functions])
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": f"{message['content']}\n{text}" if message["content"] else text}


def _as_text(arguments: object) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _with_short_ids(message: Message) -> Message:
    """The same nine letters for the same id, whoever made it."""
    said = dict(message)
    if "tool_call_id" in said:
        said["tool_call_id"] = _short(said["tool_call_id"])
    if "tool_calls" in said:
        said["tool_calls"] = [{**call, "id": _short(call["id"])} for call in said["tool_calls"]]
    return said


def _short(id: str) -> str:
    return hashlib.sha256(id.encode()).hexdigest()[:9]
