"""Whether and how long a model thinks before it answers, as far as its template lets itself be told."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from schemas.chat_schema import ChatCompletionRequest
from services.chat.dialects import Dialect
from services.errors import UnsupportedParameter

# Tokens of thinking, for models whose templates know no levels; those above think as long as they like.
BUDGETS = {"minimal": 512, "low": 2048, "medium": 8192}


@dataclass(frozen=True, slots=True)
class Thought:
    arguments: dict[str, Any] = field(default_factory=dict)  # of the template
    budget: int | None = None  # tokens
    ignored: tuple[str, ...] = ()  # what asks for more thinking than this model can do


def thought(request: ChatCompletionRequest, dialect: Dialect) -> Thought:
    effort = request.reasoning_effort
    if dialect.thinking is None and not dialect.has_effort:
        return Thought(ignored=tuple(_wishes(request)))
    arguments: dict[str, Any] = {}
    if effort and dialect.has_effort:
        arguments["reasoning_effort"] = effort
    wanted = request.enable_thinking
    if wanted is None and effort is not None and (effort == "none" or not dialect.has_effort):
        wanted = effort != "none"
    if wanted is not None:
        arguments |= _switched(request, dialect, wanted)
    return Thought(arguments, _budget(request, dialect))


def _wishes(request: ChatCompletionRequest) -> Iterator[str]:
    """Of a model that does not think before it answers. An answer without thoughts is the answer all the same."""
    if request.reasoning_effort not in (None, "none"):
        yield "reasoning_effort"
    if request.enable_thinking:
        yield "enable_thinking"
    if request.thinking_token_budget:
        yield "thinking_token_budget"


def _switched(request: ChatCompletionRequest, dialect: Dialect, wanted: bool) -> dict[str, bool]:
    if dialect.switch:
        return {dialect.switch: wanted}
    if not wanted and not (request.enable_thinking is None and dialect.has_effort):
        name = "reasoning_effort" if request.enable_thinking is None else "enable_thinking"
        raise UnsupportedParameter(name, "cannot keep this model from thinking before it answers")
    return {}


def _budget(request: ChatCompletionRequest, dialect: Dialect) -> int | None:
    if request.thinking_token_budget is not None or dialect.has_effort:
        return request.thinking_token_budget
    return BUDGETS.get(request.reasoning_effort or "")
