"""The tools of a response's request as a chat has them: in one list, each with one flat name.

Functions and custom tools of a namespace are `namespace__name` to the model. A search that the client runs is a
function to it. Tools with `defer_loading` are shown once a search has found them, or where there is no search.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import PrivateAttr

from schemas.chat_schema import ChatCompletionRequest, ChatMessage
from schemas.response_schema import ResponseInput
from services.chat.events import Callee
from services.chat.names import SEARCH, flat

ToolJson = Mapping[str, Any]

SEARCH_PARAMETERS = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
FOUND = "input"  # where tools come from that a search has found


@dataclass(frozen=True, slots=True)
class FlatTool:
    place: str  # in the response's request
    callee: Callee


class FlatRequest(ChatCompletionRequest):
    """A chat completion that a response asks for."""

    _flat: dict[int, FlatTool] = PrivateAttr(default_factory=dict)

    @property
    def flat(self) -> Mapping[int, FlatTool]:
        """By place among its tools: those that the client knows by other names."""
        return self._flat

    def flatten(self, flat: dict[int, FlatTool]) -> None:
        self._flat = flat


@dataclass(slots=True)
class FlatTools:
    """Those of one request. What cannot be called keeps its place, so that those of all others are the same."""

    tools: list[dict[str, Any]] = field(default_factory=list)
    flat: dict[int, FlatTool] = field(default_factory=dict)
    _callees: dict[str, Callee] = field(default_factory=dict)

    @classmethod
    def of(cls, request: ResponseInput, messages: Iterable[ChatMessage]) -> "FlatTools":
        flat_tools = cls()
        found = [tool for message in messages for tool in message.found_tools]
        searches = has_search(request)
        for tool in request.tools:
            flat_tools._add_top(tool, deferred=searches and bool(tool.get("defer_loading")))
        for place, tool in enumerate(request.tools):
            if tool["type"] == "namespace":
                flat_tools._add_members(tool, f"tools.{place}.tools", searches=searches)
        for found_tool in found:
            flat_tools._add_found(found_tool)
        return flat_tools

    def choice(self, request: ResponseInput) -> str | dict[str, Any] | None:
        choice = request.tool_choice
        if isinstance(choice, str):
            return choice if request.tools or choice == "required" else None
        if choice["type"] != "allowed_tools":
            return next(self._chosen(choice))
        chosen = [one for each in choice["tools"] for one in self._chosen(each)]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice["mode"], "tools": chosen}}

    def _add_top(self, tool: ToolJson, *, deferred: bool) -> None:
        match tool:
            case {"type": "function" | "custom"} if not deferred:
                self._add(tool, Callee(tool["name"], tool["type"]))
            case {"type": "tool_search", "execution": "client"}:
                parameters = tool.get("parameters") or SEARCH_PARAMETERS
                shown = {"description": tool.get("description"), "parameters": parameters}
                self._add({"type": "function", "name": SEARCH, **shown}, Callee(SEARCH, "tool_search"))
            case _:
                self.tools.append({"type": tool["type"] if tool["type"] not in ("function", "custom") else "deferred"})

    def _add_members(self, namespace: ToolJson, place: str, *, searches: bool) -> None:
        for index, tool in enumerate(namespace["tools"]):
            if searches and (tool.get("defer_loading") or namespace.get("defer_loading")):
                continue
            self._add_member(tool, namespace, f"{place}.{index}")

    def _add_member(self, tool: ToolJson, namespace: ToolJson, place: str) -> None:
        if tool["type"] in ("function", "custom"):
            about = " ".join(filter(None, [namespace.get("description"), tool.get("description")]))
            self._add({**tool, "description": about}, Callee(tool["name"], tool["type"], namespace["name"]), place)

    def _add_found(self, tool: ToolJson) -> None:
        known = self._callees.values()
        match tool:
            case {"type": "namespace", "tools": list(tools), "name": name}:
                for each in tools:
                    if Callee(each["name"], each["type"], name) not in known:
                        self._add_member(each, tool, FOUND)
            case {"type": "function" | "custom"} if Callee(tool["name"], tool["type"]) not in known:
                self._add(tool, Callee(tool["name"], tool["type"]), FOUND)

    def _add(self, tool: ToolJson, callee: Callee, place: str | None = None) -> None:
        name = flat(callee.name, callee.namespace, self._callees)
        self._callees.setdefault(name, callee)
        place = place or f"tools.{len(self.tools)}"
        self.flat[len(self.tools)] = FlatTool(place, callee)
        self.tools.append(_as_chat(tool, name))

    def _chosen(self, choice: ToolJson) -> Iterator[dict[str, Any]]:
        """By its namespace and name, by its flat name, or by its name alone where only one has it."""
        match choice:
            case {"type": "namespace", "name": namespace}:
                yield from (_one(name, each) for name, each in self._callees.items() if each.namespace == namespace)
            case {"type": "tool_search"}:
                yield from (_one(name, each) for name, each in self._callees.items() if each.kind == "tool_search")
            case {"type": "function" | "custom" as kind, "name": name}:
                yield {"type": kind, kind: {"name": self._name(kind, name, choice.get("namespace"))}}
            case _:
                yield {"type": choice["type"]}

    def _name(self, kind: str, name: str, namespace: str | None) -> str:
        if namespace is None and name in self._callees:
            return name
        same = [(known, each) for known, each in self._callees.items() if (each.name, each.kind) == (name, kind)]
        those = [known for known, each in same if namespace in (None, each.namespace)]
        return those[0] if len(those) == 1 else flat(name, namespace)


def has_search(request: ResponseInput) -> bool:
    return any(tool["type"] == SEARCH and tool.get("execution") == "client" for tool in request.tools)


def ignored_deferrals(request: ResponseInput) -> Iterator[str]:
    """Wishes to defer tools, where nothing searches for them."""
    if has_search(request):
        return
    for place, tool in enumerate(request.tools):
        members = enumerate(tool.get("tools") or ()) if tool["type"] == "namespace" else ()
        yield from (f"tools.{place}.tools.{index}.defer_loading" for index, each in members if _is_deferred(each))
        if tool["type"] in ("function", "custom", "namespace") and _is_deferred(tool):
            yield f"tools.{place}.defer_loading"


def _is_deferred(tool: ToolJson) -> bool:
    return bool(tool.get("defer_loading"))


def _one(name: str, callee: Callee) -> dict[str, Any]:
    kind = "custom" if callee.kind == "custom" else "function"
    return {"type": kind, kind: {"name": name}}


def _as_chat(tool: ToolJson, name: str) -> dict[str, Any]:
    kind = tool["type"]
    fields = {key: value for key, value in tool.items() if key not in ("type", "defer_loading")} | {"name": name}
    if kind == "custom" and (format := fields.get("format")) and format["type"] == "grammar":
        grammar = {key: value for key, value in format.items() if key != "type"}
        fields["format"] = {"type": "grammar", "grammar": grammar}
    return {"type": kind, kind: fields}
