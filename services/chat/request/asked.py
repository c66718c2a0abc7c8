"""A request for one model: the job that answers it, and how its answer is to be read."""

from dataclasses import dataclass, replace
from typing import Literal

from schemas.chat_schema import ChatCompletionRequest
from services.chat.dialects import Dialect
from services.chat.parsing.splitter import Format
from services.chat.request import prompt, tool_images, tools
from services.chat.request.call_grammar import call_grammar, marker
from services.chat.request.contents import Illustration
from services.chat.request.encoding import Room
from services.chat.request.thinking import thought
from services.chat.request.tools import Offer
from services.engine.base import Job, Message, SamplingParams, ThinkingLimit, Tokenizer
from services.errors import UnsupportedParameter

TAIL = 16  # tokens of the prompt in which its last marker is


@dataclass(frozen=True, slots=True)
class Asked:
    job: Job
    format: Format
    ignored: tuple[str, ...] = ()  # parameters that this model has no use for


@dataclass(frozen=True, slots=True)
class Model:
    """What of a model decides how it is asked."""

    tokenizer: Tokenizer
    dialect: Dialect


def asked(
    id: str,
    request: ChatCompletionRequest,
    messages: list[Message],
    params: SamplingParams,
    model: Model,
    illustration: Illustration | None = None,
    room: Room = prompt.ANY,
) -> Asked:
    dialect, offer = model.dialect, tools.offer(request)
    thinks = thought(request, dialect)
    shown = {"tools": tools.declared(offer.tools)} if offer and dialect.shows_tools else {}
    template = prompt.template(request, **shown, **thinks.arguments)
    told = tools.told(tool_images.shown_by_user(messages), offer, dialect)
    job = prompt.job(id, told, params, model.tokenizer, template, illustration, room)
    state = _thinking(job, model)
    format = _format(dialect, offer, params, begun=state == "begun")
    grammar = call_grammar(offer, dialect.calls, params.grammar) if offer else params.grammar
    held = replace(
        params,
        stop=params.stop if format.is_plain else (),
        grammar=replace(grammar, before=_before(format, state)) if grammar else None,
        thinking=_limit(thinks.budget, format, state, model),
    )
    return Asked(replace(job, sampling=held), format, thinks.ignored)


State = Literal["open", "begun", "over"]


def _thinking(job: Job, model: Model) -> State:
    """Where the prompt has left it: begun, over before it began, or open to the model."""
    thinking = model.dialect.thinking
    if thinking is None:
        return "over"
    end = str(model.tokenizer.decode(list(job.prompt[-TAIL:]))).rstrip()
    if end.endswith(thinking.begin):
        return "begun"
    return "over" if end.endswith(thinking.end) else "open"


def _format(dialect: Dialect, offer: Offer | None, params: SamplingParams, *, begun: bool) -> Format:
    names = offer.names if offer else frozenset()
    callees = offer.callees if offer else {}
    format = Format(dialect.thinking, begun, dialect.calls if offer else None, names, callees)
    if format.is_plain:
        return format
    # stop strings are the content's: in thoughts and calls they would break it
    return replace(format, stop=params.stop, include_stop=params.include_stop, min_tokens=params.min_tokens)


def _before(format: Format, state: State) -> str:
    """What may come before an answer that is held to a form: free thinking."""
    if format.thinking is None or state == "over":
        return ""
    end = rf"...{marker(format.thinking.end)} /\n{{0,2}}/"
    return end if state == "begun" else f"({marker(format.thinking.begin)} {end})?"


def _limit(budget: int | None, format: Format, state: State, model: Model) -> ThinkingLimit | None:
    if budget is None or format.thinking is None or state == "over":
        return None
    begin = None if state == "begun" else _token(format.thinking.begin, model)
    return ThinkingLimit(budget, end=_token(format.thinking.end, model), begin=begin)


def _token(marker: str, model: Model) -> int:
    tokens = model.tokenizer.encode(marker, add_special_tokens=False)
    if len(tokens) != 1:
        raise UnsupportedParameter("thinking_token_budget", "needs a model whose thinking is marked by single tokens")
    return tokens[0]
