"""The tools of a request: which the model is shown, and which it may call."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from schemas.chat_schema import ChatCompletionRequest
from schemas.tool_schema import (
    AllowedTools,
    CustomTool,
    Function,
    Grammar,
    NamedCustomToolChoice,
    NamedToolChoice,
    SingleToolChoice,
    Tool,
)
from services.chat.events import Callee
from services.chat.request import custom_tools
from services.chat.request.response_tools import FlatRequest


@dataclass(frozen=True, slots=True)
class ToolSelection:
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

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """JSON schemas, by name."""
        return {each.name: each.parameters for each in self.callable}


def select_tools(request: ChatCompletionRequest) -> ToolSelection | None:
    """None: nothing may be called, and the prompt has no tools."""
    choice, offered = request.tool_choice or "auto", list(served(request))
    if not offered or choice == "none":
        return None
    names = chosen(choice)
    may = [each for each in offered if names is None or (each.type, each.function.name) in names]
    # the prompt has the allowed ones only, so that the model calls no other where nothing forces it
    shown = may if isinstance(choice, AllowedTools) else offered
    return ToolSelection(
        tools=tuple(Tool(type="function", function=each.function) for each in shown),
        callable=tuple(each.function for each in may),
        must=choice == "required" or isinstance(choice, SingleToolChoice) or _is_required(choice),
        parallel=request.parallel_tool_calls and not isinstance(choice, SingleToolChoice),
        params=tuple(each.form for each in may),
        callees={each.function.name: each.callee for each in may if each.callee},
        grammars={each.function.name: each.grammar for each in may if each.grammar},
    )


@dataclass(frozen=True, slots=True)
class ServedTool:
    type: Literal["function", "custom"]
    function: Function  # as the model knows it
    place: str  # in the request
    callee: Callee | None = None
    grammar: Grammar | None = None

    @property
    def form(self) -> str:
        """Where that of its arguments is in the request."""
        return f"{self.place}.parameters" if self.type == "function" else f"{self.place}.format"


def served(request: ChatCompletionRequest) -> Iterator[ServedTool]:
    """Tools of other kinds are only offered: they are left aside."""
    flat = request.flat if isinstance(request, FlatRequest) else {}
    for index, tool in enumerate(request.tools):
        known = flat.get(index)
        place = known.place if known else f"tools.{index}.{tool.type}"
        match tool:
            case Tool():
                yield ServedTool("function", tool.function, place, known.callee if known else None)
            case CustomTool(custom=custom):
                callee = known.callee if known else Callee(custom.name, "custom")
                yield ServedTool("custom", custom_tools.as_function(custom), place, callee, custom.grammar)


def chosen(choice: str | SingleToolChoice | AllowedTools) -> set[tuple[str, str]] | None:
    """Types and names."""
    match choice:
        case NamedToolChoice() | NamedCustomToolChoice():
            return {(choice.type, choice.name)}
        case AllowedTools():
            return {(each.type, each.name) for each in choice.allowed_tools.tools if isinstance(each, SingleToolChoice)}
        case _:
            return None


def _is_required(choice: str | SingleToolChoice | AllowedTools) -> bool:
    return isinstance(choice, AllowedTools) and choice.allowed_tools.mode == "required"
