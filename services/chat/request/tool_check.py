"""What is wrong with the tools of a request, and with the results of calls in its messages.

The check of schemas is ours: the jsonschema package takes 1 ms a tool where this takes 5 us, and agents send 30 tools
with each request. What it leaves out, the grammar compiler refuses where arguments are forced.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from schemas.chat_schema import ChatCompletionRequest
from services.chat.request.tool_selection import chosen, served
from services.engine.base import Message
from services.errors import InvalidRequest

MAX_DEPTH = 100  # of a schema
TYPES = {"array", "boolean", "integer", "null", "number", "object", "string"}


def check(request: ChatCompletionRequest) -> None:
    if request.tool_choice not in (None, "none", "auto"):
        _check_forced(request)
    names: set[str] = set()
    kinds: set[tuple[str, str]] = set()
    for each in served(request):
        if each.function.name in names:
            raise InvalidRequest("'%s': two tools have the same name", f"{each.place}.name")
        names.add(each.function.name)
        kinds.add((each.type, each.function.name))
        check_parameters(each.function.parameters, each.form)
    if not (chosen(request.tool_choice or "auto") or set()) <= kinds:
        raise InvalidRequest("'%s' names a tool that is not among '%s'", "tool_choice", "tools")


def _check_forced(request: ChatCompletionRequest) -> None:
    """An answer without a call that it is to have would be wrong."""
    if not request.tools:
        raise InvalidRequest("'%s' goes with '%s' only", "tool_choice", "tools")
    if not any(served(request)) or chosen(request.tool_choice or "auto") == set():
        raise InvalidRequest("'%s' leaves only tools of kinds that are not served here", "tool_choice")


def check_parameters(schema: Mapping[str, Any], param: str) -> None:
    """As far as it can be seen without a grammar."""
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise InvalidRequest("'%s': the schema of arguments has the type 'object'", param)
    if _is_deep(schema):
        raise InvalidRequest(f"'%s' is nested more than {MAX_DEPTH} levels deep", param)
    wrong = next(_flaws(schema), None)
    if wrong:
        raise InvalidRequest(f"'%s' is no JSON schema: '{wrong}' is not what it must be", param)


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
            raise InvalidRequest("'%s': a tool's result is of no call that was made before", param)
