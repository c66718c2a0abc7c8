"""Anthropic's request -> the chat completion it asks for."""

from collections.abc import Iterator
from typing import Any

from app.spec import ChatCompletionRequest, InvalidRequest, unknown_keys
from app.spec.anthropic import tools
from app.spec.anthropic.history import History
from app.spec.anthropic.sealed_thinking import sealed
from schemas.anthropic_schema import CountRequest, JsonOutputFormat, MessagesRequest, ThinkingConfig

EFFORTS = {"max": "xhigh"}  # others are called the same

# What the chat completion calls it -> what this protocol does.
NAMES = {
    "chat_template_kwargs": "thinking.",
    "enable_thinking": "thinking",
    "max_completion_tokens": "max_tokens",
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format.",
    "stop": "stop_sequences",
    "thinking_token_budget": "thinking.budget_tokens",
    "user": "metadata.user_id",
}


def chat(request: CountRequest) -> ChatCompletionRequest:
    """Raises InvalidRequest for what would otherwise be ignored."""
    messages = _history(request).messages
    fields: dict[str, Any] = {"model": request.model, "messages": messages, **_thinking(request.thinking)}
    fields |= tools.tools(request) | _format(request)
    if messages and messages[-1]["role"] == "assistant" and messages[-1].get("content"):
        fields["continue_final_message"] = True
    if isinstance(request, MessagesRequest):
        fields |= _sampling(request)
    return ChatCompletionRequest.model_validate(fields)


def names(request: CountRequest) -> dict[str, str]:
    """Of the parts of its chat completion, in this request."""
    return {**NAMES, **tools.places(request), **_history(request).places}


def ignored(request: CountRequest) -> Iterator[str]:
    """Of a request whose sealed thoughts are opened, as far as they can be."""
    yield from unknown_keys(request, {})
    yield from sealed(request.messages)


def _history(request: CountRequest) -> History:
    return History(request.system, request.messages)


def _sampling(request: MessagesRequest) -> dict[str, Any]:
    return {
        "max_completion_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_k": request.top_k,
        "top_p": request.top_p,
        "stop": request.stop_sequences,
        "user": request.metadata.user_id if request.metadata else None,
    }


def _thinking(thinking: ThinkingConfig | None) -> dict[str, Any]:
    if thinking is None or thinking.type == "disabled":
        return {"chat_template_kwargs": {"enable_thinking": False}}
    fields: dict[str, Any] = {"enable_thinking": True}
    if thinking.type == "enabled":
        if thinking.budget_tokens is None:
            raise InvalidRequest("'thinking.budget_tokens' is required", param="thinking.budget_tokens")
        fields["thinking_token_budget"] = thinking.budget_tokens
    return fields


def _format(request: CountRequest) -> dict[str, Any]:
    config = request.output_config
    fields: dict[str, Any] = {}
    if config and config.effort:
        fields["reasoning_effort"] = EFFORTS.get(config.effort, config.effort)
    if format := (config.format if config else None) or request.output_format:
        fields["response_format"] = _json_schema(format)
    return fields


def _json_schema(format: JsonOutputFormat) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": format.schema_, "strict": True}}
