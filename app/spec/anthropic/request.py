"""Anthropic's request -> the chat completion it asks for."""

import json
from collections.abc import Iterator
from typing import Any

from app.spec import ChatCompletionRequest, InvalidRequest, refuse, unknown_keys
from schemas.anthropic_schema import (
    Base64Source,
    CountRequest,
    ImageBlock,
    Message,
    MessagesRequest,
    TextBlock,
    Thinking,
    ThinkingBlock,
    Tool,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
    UrlSource,
)

# Parts of the contract that are not served, each with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "container": (),
    "context_management": (),
    "diagnostics": (),
    "fallbacks": (),
    "inference_geo": (),
    "mcp_servers": ([],),
    "output_format": (),
    "service_tier": ("auto", "standard_only"),
    "speed": ("standard",),
    "user_profile_id": (),
    "workspace_id": (),
}

CHOICES = {"auto": "auto", "any": "required", "none": "none"}
EFFORTS = {"max": "xhigh"}  # others are called the same
Part = dict[str, Any]


def chat(request: CountRequest) -> ChatCompletionRequest:
    """Raises InvalidRequest for what would otherwise be ignored."""
    refuse(request, UNSUPPORTED)
    _check_results(request.messages)
    messages = [*_system(request), *(each for message in request.messages for each in _messages(message))]
    asked: dict[str, Any] = {"model": request.model, "messages": messages, **_thinking(request.thinking)}
    asked |= _tools(request.tools, request.tool_choice) | _format(request)
    last = request.messages[-1]
    if last.role == "assistant" and last.content:
        asked["continue_final_message"] = True
    if isinstance(request, MessagesRequest):
        asked |= _sampling(request)
    return ChatCompletionRequest.model_validate(asked)


def _check_results(messages: list[Message]) -> None:
    called: set[str] = set()
    for index, message in enumerate(messages):
        for place, block in enumerate(message.content):
            if isinstance(block, ToolUseBlock):
                called.add(block.id)
            elif isinstance(block, ToolResultBlock) and block.tool_use_id not in called:
                param = f"messages.{index}.content.{place}.tool_use_id"
                raise InvalidRequest(f"'{param}' is the id of no tool_use block before", param=param)


def ignored(request: CountRequest) -> list[str]:
    return unknown_keys(request, UNSUPPORTED)


def _sampling(request: MessagesRequest) -> dict[str, Any]:
    return {
        "max_completion_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_k": request.top_k,
        "top_p": request.top_p,
        "stop": request.stop_sequences,
        "user": request.metadata.user_id if request.metadata else None,
    }


def _system(request: CountRequest) -> list[Part]:
    return [{"role": "system", "content": "\n".join(block.text for block in request.system)}] if request.system else []


def _messages(message: Message) -> Iterator[Part]:
    """The results of tools are messages of their own, in the place where they stand."""
    rest: list[Any] = []
    for block in message.content:
        if isinstance(block, ToolResultBlock):
            yield from _message(message.role, rest)
            yield _result(block)
            rest = []
        else:
            rest.append(block)
    yield from _message(message.role, rest)


def _message(role: str, blocks: list[TextBlock | ImageBlock | ThinkingBlock | ToolUseBlock]) -> Iterator[Part]:
    if not blocks:
        return
    message: Part = {"role": role}
    if parts := [_part(each) for each in blocks if isinstance(each, TextBlock | ImageBlock)]:
        message["content"] = parts
    if calls := [_call(each) for each in blocks if isinstance(each, ToolUseBlock)]:
        message["tool_calls"] = calls
    if thoughts := [each.thinking for each in blocks if isinstance(each, ThinkingBlock)]:
        message["reasoning_content"] = "".join(thoughts)
        message.setdefault("content", "")
    yield message


def _part(block: TextBlock | ImageBlock) -> Part:
    match block:
        case TextBlock(text=text):
            return {"type": "text", "text": text}
        case ImageBlock(source=Base64Source() as source):
            return {"type": "image_url", "image_url": {"url": f"data:{source.media_type};base64,{source.data}"}}
        case ImageBlock(source=UrlSource(url=url)):
            return {"type": "image_url", "image_url": {"url": url}}
    raise AssertionError("the schema lets nothing else through")


def _call(block: ToolUseBlock) -> Part:
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": json.dumps(block.input)}}


def _result(block: ToolResultBlock) -> Part:
    parts = [_part(each) for each in block.content]
    if block.is_error:  # chat templates know no other way to say so
        parts.insert(0, {"type": "text", "text": "Error: "})
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": parts or ""}


def _tools(tools: list[Tool], choice: ToolChoice | None) -> dict[str, Any]:
    asked: dict[str, Any] = {"tools": [_tool(each) for each in tools]} if tools else {}
    if choice is None:
        return asked
    if (choice.type == "tool") != (choice.name is not None):
        raise InvalidRequest("'tool_choice.name' goes with the type 'tool', and only with it", param="tool_choice.name")
    named = {"type": "function", "function": {"name": choice.name}}
    asked["tool_choice"] = named if choice.type == "tool" else CHOICES[choice.type]
    if choice.disable_parallel_tool_use:
        asked["parallel_tool_calls"] = False
    return asked


def _tool(tool: Tool) -> Part:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": {**function, "strict": tool.strict}}


def _thinking(thinking: Thinking | None) -> dict[str, Any]:
    if thinking is None or thinking.type == "disabled":
        return {"chat_template_kwargs": {"enable_thinking": False}}
    asked: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": True}}
    if thinking.type == "enabled":
        if thinking.budget_tokens is None:
            raise InvalidRequest("'thinking.budget_tokens' is required", param="thinking.budget_tokens")
        asked["thinking_token_budget"] = thinking.budget_tokens
    return asked


def _format(request: CountRequest) -> dict[str, Any]:
    config = request.output_config
    asked: dict[str, Any] = {}
    if config and config.effort:
        asked["reasoning_effort"] = EFFORTS.get(config.effort, config.effort)
    if config and config.format:
        schema = {"name": "output", "schema": config.format.schema_, "strict": True}
        asked["response_format"] = {"type": "json_schema", "json_schema": schema}
    return asked
