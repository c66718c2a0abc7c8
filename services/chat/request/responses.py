"""A request for a response -> the chat completion it asks for, and the response as it begins."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from schemas.chat_schema import ChatCompletionRequest, ChatMessage
from schemas.ignored_keys import Kept
from schemas.response_answer_schema import Response
from schemas.response_schema import CompactRequest, ConversationRequest, ResponseInput, ResponseRequest, Retrieval
from services.chat import items
from services.chat.items import Item
from services.chat.request import prompt, refusals, response_tools
from services.chat.request.refusals import ReportIgnored, refuse
from services.chat.request.response_tools import FlatRequest, FlatTools
from services.errors import InvalidRequest, ServiceError, UnsupportedParameter, literal
from services.parameter_names import ParameterNames, renamed, translate_error

# Parts of the contract that this server does not serve, each with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "prompt": (),
}

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED_REASONING = "reasoning.encrypted_content"
SERVED_INCLUDES = (LOGPROBS, ENCRYPTED_REASONING, "message.input_image.image_url")

# What a chat completion calls it -> what a response calls it. A message is not an item: there may be more or fewer.
NAMES: ParameterNames = {
    "messages": "input.",
    "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}


# What of a response is what was asked for, and not how it was answered.
REQUEST_FACTS = {
    *("background", "instructions", "max_output_tokens", "max_tool_calls", "parallel_tool_calls", "prompt_cache_key"),
    *("reasoning", "safety_identifier", "service_tier", "store", "temperature", "text", "tool_choice", "tools"),
    *("top_logprobs", "top_p", "truncation", "user"),
}


TRIGGER = "compaction_trigger"


def check(request: ConversationRequest) -> None:
    """Refuses by name what would otherwise be ignored."""
    refuse(request, UNSUPPORTED)
    if request.conversation is not None and request.previous_response_id is not None:
        raise InvalidRequest(
            "'%s' goes without '%s': both name what was said before", "previous_response_id", "conversation"
        )
    if request.parent_item is not None and request.conversation is None:
        raise InvalidRequest("'%s' goes with '%s' only", "parent_item", "conversation")
    items.check([item for item in request.input if item["type"] != "item_reference"])
    _check_trigger(request.input)
    if isinstance(request, ResponseRequest | CompactRequest):
        _check_has_input(request)
    if isinstance(request, ResponseInput):
        _check_choice(request.tool_choice)
    if isinstance(request, ResponseRequest):
        _check_answer(request)


def _check_trigger(input_items: Sequence[Item]) -> None:
    for index, item in enumerate(input_items[:-1]):
        if item["type"] == TRIGGER:
            raise InvalidRequest(f"'{TRIGGER}' must be the last item", param=f"input.{index}")


def _check_has_input(request: ConversationRequest) -> None:
    input_items = [item for item in request.input if item["type"] != TRIGGER]
    if not input_items and request.conversation is None and request.previous_response_id is None:
        raise InvalidRequest("'%s' is required", "input")


def is_triggered(request: ConversationRequest) -> bool:
    """It asks for a compaction instead of an answer."""
    return bool(request.input) and request.input[-1]["type"] == TRIGGER


def threshold(request: ResponseRequest) -> int | None:
    """Tokens beyond which it is to be compacted, where it says how many."""
    return min(
        (edit["compact_threshold"] for edit in _compactions(request) if "compact_threshold" in edit), default=None
    )


def room(request: ResponseRequest, length: int) -> int:
    """Tokens of the context that are left to the answer: what was asked for it, or a quarter."""
    return min(request.max_output_tokens or length // 4, length // 2)


def compacts(request: ResponseRequest) -> bool:
    return bool(_compactions(request))


def _compactions(request: ResponseRequest) -> list[Kept]:
    return [edit for edit in request.context_management if edit["type"] == "compaction"]


def _check_choice(choice: str | dict[str, Any]) -> None:
    if isinstance(choice, dict) and choice["type"] not in ("function", "custom", "allowed_tools"):
        raise UnsupportedParameter(
            "tool_choice.type", f"is '{literal(choice['type'])}': no tools of that type are served here"
        )


def _check_answer(request: ResponseRequest) -> None:
    if request.background and not request.store:
        raise InvalidRequest("'%s' goes with '%s': true only", "background", "store")
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("'%s' goes with '%s': true only", "stream_options", "stream")


def check_retrieval(query: Retrieval) -> None:
    if query.starting_after is not None and not query.stream:
        raise InvalidRequest("'%s' goes with '%s': true only", "starting_after", "stream")


def unknown_keys(request: ConversationRequest) -> list[str]:
    found = refusals.unknown_keys(request, UNSUPPORTED)
    return found + list(_unused(request)) if isinstance(request, ResponseRequest) else found


def _unused(request: ResponseRequest) -> Iterator[str]:
    """What asks for more than an answer has."""
    yield from ignored_includes(request.include)
    yield from response_tools.ignored_deferrals(request)
    if request.top_logprobs and LOGPROBS not in request.include:
        yield "top_logprobs"


def ignored_includes(include: Iterable[str]) -> Iterator[str]:
    """Images are part of each message that has some; all others are about tools that are not served here."""
    return (f"include.{name}" for name in include if name not in SERVED_INCLUDES)


def unknown_in_retrieval(query: Retrieval) -> list[str]:
    return [*ignored_includes(query.include), *(["include_obfuscation"] if query.include_obfuscation else [])]


def as_chat(
    request: ResponseInput, messages: Sequence[ChatMessage], left_out: Sequence[ChatMessage] = ()
) -> ChatCompletionRequest:
    """`messages`: all that the prompt has but the instructions; what searches in those that were left out have
    found can still be called."""
    tools = FlatTools.of(request, [*left_out, *messages])
    fields: dict[str, Any] = {
        "model": request.model,
        "tools": tools.tools,
        "tool_choice": tools.choice(request),
        "parallel_tool_calls": request.parallel_tool_calls,
        "reasoning_effort": request.reasoning.effort if request.reasoning else None,
        "response_format": _chat_format(request.text.format),
    }
    if isinstance(request, ResponseRequest):
        fields |= _sampling(request)
    instructions = [ChatMessage(role="system", content=request.instructions)] if request.instructions else []
    try:
        chat = FlatRequest(messages=[*instructions, *messages], **fields)
    except ValidationError as error:
        found = error.errors()[0]
        raise InvalidRequest(f"'%s': {literal(found['msg'])}", ".".join(map(str, found["loc"]))) from error
    chat.flatten(tools.flat)
    return chat


def _sampling(request: ResponseRequest) -> dict[str, Any]:
    return {
        "max_completion_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "logprobs": LOGPROBS in request.include,
        "top_logprobs": request.top_logprobs if LOGPROBS in request.include else 0,
        "service_tier": request.service_tier,
        "cache_salt": request.cache_salt,
        "continue_final_message": request.continue_final_message,
    }


def _chat_format(format: Mapping[str, Any]) -> dict[str, Any]:
    if format["type"] != "json_schema":
        return dict(format)
    return {"type": "json_schema", "json_schema": {name: value for name, value in format.items() if name != "type"}}


def translate_report(report_ignored: ReportIgnored) -> ReportIgnored:
    """Takes names of the chat completion's parameters, and reports them as the response's request has them."""
    return lambda names: report_ignored(renamed(name, NAMES) for name in names)


def translated(error: ServiceError) -> ServiceError:
    """An error of the chat completion, as one of the response's request."""
    return translate_error(error, NAMES)


def initial_response(request: ResponseRequest, model: str) -> Response:
    """As it is before it has an id."""
    return Response(
        id="",
        created_at=0,
        status="queued" if request.background else "in_progress",
        background=request.background,
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=request.max_tool_calls,
        model=model,
        parallel_tool_calls=request.parallel_tool_calls,
        previous_response_id=request.previous_response_id,
        prompt_cache_key=request.prompt_cache_key,
        reasoning=_reasoning(request),
        safety_identifier=request.safety_identifier,
        service_tier=prompt.served_tier(request.service_tier) or "default",
        store=request.store,
        temperature=1.0 if request.temperature is None else request.temperature,
        text={"format": request.text.format, "verbosity": request.text.verbosity or "medium"},
        tool_choice=request.tool_choice,
        tools=request.tools,
        top_logprobs=request.top_logprobs,
        top_p=1.0 if request.top_p is None else request.top_p,
        truncation=request.truncation,
        user=request.user,
        metadata=request.metadata,
    )


def _reasoning(request: ResponseRequest) -> dict[str, Any]:
    config = request.reasoning
    return {"effort": config.effort if config else None, "summary": config.summary_mode if config else None}


def own_items(request: ConversationRequest, resolved: Mapping[str, Item]) -> list[Item]:
    """The request's own, with what it refers to in the place of the references."""
    found: list[Item] = []
    for index, item in enumerate(request.input):
        if item["type"] == TRIGGER:
            continue
        if item["type"] != "item_reference":
            found.append(item)
        elif item["id"] in resolved:
            found.append(resolved[item["id"]])
        else:
            raise InvalidRequest(f"No item with id '{item['id'][:64]}'", param=f"input.{index}.id")
    return found
