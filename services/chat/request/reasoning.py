"""Whether and how long a model thinks before it answers, as far as its template has a switch for it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from schemas.chat_schema import ChatCompletionRequest
from services.chat.formats.base import ChatFormat
from services.errors import UnsupportedParameter

# Tokens of thinking, for models whose templates know no levels; those above think as long as they like.
BUDGETS = {"minimal": 512, "low": 2048, "medium": 8192}


@dataclass(frozen=True, slots=True)
class ReasoningConfig:
    arguments: dict[str, Any] = field(default_factory=dict)  # of the template
    budget: int | None = None  # tokens
    ignored: tuple[str, ...] = ()  # what asks for more thinking than this model can do


def reasoning_config(request: ChatCompletionRequest, format: ChatFormat) -> ReasoningConfig:
    effort = request.reasoning_effort
    if format.thinking is None and not format.has_effort:
        return ReasoningConfig(ignored=tuple(_wishes(request)))
    arguments: dict[str, Any] = {}
    if effort and format.has_effort:
        arguments["reasoning_effort"] = _known_effort(effort, format)
    enabled = request.enable_thinking
    if enabled is None and effort is not None and (effort == "none" or not format.has_effort):
        enabled = effort != "none"
    if enabled is not None:
        arguments |= _switched(request, format, enabled)
    return ReasoningConfig(arguments, _budget(request, format))


def _known_effort(effort: str, format: ChatFormat) -> str:
    if format.tools.answer is None:
        return effort
    if effort not in format.tools.answer.efforts:
        raise UnsupportedParameter("reasoning_effort", "cannot keep this model from thinking before it answers")
    return format.tools.answer.efforts[effort]


def _wishes(request: ChatCompletionRequest) -> Iterator[str]:
    """Of a model that does not think before it answers. An answer without thoughts is the answer all the same."""
    if request.reasoning_effort not in (None, "none"):
        yield "reasoning_effort"
    if request.enable_thinking:
        yield "enable_thinking"
    if request.thinking_token_budget:
        yield "thinking_token_budget"


def _switched(request: ChatCompletionRequest, format: ChatFormat, enabled: bool) -> dict[str, bool]:
    if format.switch:
        return {format.switch: enabled}
    if not enabled and not (request.enable_thinking is None and format.has_effort):
        name = "reasoning_effort" if request.enable_thinking is None else "enable_thinking"
        raise UnsupportedParameter(name, "cannot keep this model from thinking before it answers")
    return {}


def _budget(request: ChatCompletionRequest, format: ChatFormat) -> int | None:
    if request.thinking_token_budget is not None or format.has_effort:
        return request.thinking_token_budget
    return BUDGETS.get(request.reasoning_effort or "")
