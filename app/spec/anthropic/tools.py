"""Anthropic's tools -> those of a chat completion. Tools that run at Anthropic are offers: left aside, and named."""

from typing import Any

from app.spec import InvalidRequest, UnsupportedParameter
from app.spec.anthropic.blocks import JsonObject
from schemas.anthropic_schema import AnthropicTool, AnthropicToolChoice, CountRequest, HostedTool

CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def tools(request: CountRequest) -> dict[str, Any]:
    own = [_tool(each) for _, each in _own(request)]
    fields: dict[str, Any] = {"tools": own} if own else {}
    if request.tool_choice:
        fields |= _choice(request.tool_choice, request)
    return fields


def places(request: CountRequest) -> dict[str, str]:
    """What the chat completion calls parts of a tool -> what this request calls them."""
    found = {}
    for place, (index, _) in enumerate(_own(request)):
        found[f"tools.{place}"] = f"tools.{index}"
        found[f"tools.{place}.function"] = f"tools.{index}"
        found[f"tools.{place}.function.parameters"] = f"tools.{index}.input_schema"
    return found


def _own(request: CountRequest) -> list[tuple[int, AnthropicTool]]:
    return [(index, tool) for index, tool in enumerate(request.tools) if isinstance(tool, AnthropicTool)]


def _tool(tool: AnthropicTool) -> JsonObject:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": {**function, "strict": tool.strict}}


def _choice(choice: AnthropicToolChoice, request: CountRequest) -> dict[str, Any]:
    if (choice.type == "tool") != (choice.name is not None):
        raise InvalidRequest("'tool_choice.name' goes with the type 'tool', and only with it", param="tool_choice.name")
    _check_forced(choice, request)
    named = {"type": "function", "function": {"name": choice.name}}
    fields: dict[str, Any] = {"tool_choice": named if choice.type == "tool" else CHOICES[choice.type]}
    if choice.disable_parallel_tool_use:
        fields["parallel_tool_calls"] = False
    return fields


def _check_forced(choice: AnthropicToolChoice, request: CountRequest) -> None:
    """What must be called must be there."""
    names = {tool.name for tool in request.tools if isinstance(tool, HostedTool)}
    own = {tool.name for _, tool in _own(request)}
    if choice.type == "tool" and choice.name in names - own:
        raise UnsupportedParameter("tool_choice.name", "is a tool that runs at Anthropic, and is not served here")
    if choice.type == "any" and request.tools and not own:
        raise UnsupportedParameter("tool_choice.type", "forces a tool that runs at Anthropic: none is served here")
