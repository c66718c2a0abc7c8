"""Ollama's requests -> the chat completions they ask for."""

import json
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import Any

from app.spec import ChatCompletionRequest, InvalidRequest, refuse, unknown_keys
from schemas.ollama_schema import (
    ChatRequest,
    GenerateRequest,
    OllamaGenerationRequest,
    OllamaMessage,
    OllamaTool,
    OllamaToolCall,
    Options,
)

# Each kind of image begins in its own way, in base64 too.
IMAGES = {"iVBOR": "png", "/9j/": "jpeg", "R0lG": "gif", "UklG": "webp"}
UNSUPPORTED: dict[str, tuple[object, ...]] = {"context": (), "width": (), "height": (), "steps": ()}

# What the chat completion calls it -> what this protocol does.
NAMES = {
    "chat_template_kwargs": "think.",
    "enable_thinking": "think",
    "frequency_penalty": "options.frequency_penalty",
    "max_completion_tokens": "options.num_predict",
    "messages.*.content.*": "messages.*.images.*.",
    "messages.*.reasoning_content": "messages.*.thinking",
    "messages.*.tool_call_id": "messages.*.tool_name",
    "min_p": "options.min_p",
    "presence_penalty": "options.presence_penalty",
    "reasoning_effort": "think",
    "repetition_penalty": "options.repeat_penalty",
    "response_format": "format.",
    "seed": "options.seed",
    "stop": "options.stop",
    "temperature": "options.temperature",
    "top_k": "options.top_k",
    "top_p": "options.top_p",
}
TOO_LONG = "the input length exceeds the context length: {tokens} tokens > {limit}"  # by which clients know it
HUBS = ("hf.co/", "huggingface.co/")
WINDOWS = (None, -1, 0)  # of penalties: of all tokens, or of none

JsonObject = dict[str, Any]


def chat(request: OllamaGenerationRequest) -> ChatCompletionRequest:
    refuse(request, UNSUPPORTED)
    fields = sampling(request.options) | _format(request.format) | _thinking(request)
    fields |= {"model": model(request.model), "logprobs": request.logprobs, "top_logprobs": request.top_logprobs}
    match request:
        case ChatRequest():
            fields |= {"messages": _MessageBuilder(request.messages).written}
            fields |= {"tools": [_tool(each) for each in request.tools]} if request.tools else {}
        case GenerateRequest():
            system = [{"role": "system", "content": request.system}] if request.system else []
            fields["messages"] = [*system, {"role": "user", "content": _content(request.prompt, request.images)}]
    return ChatCompletionRequest.model_validate(fields)


def model(name: str | None) -> str | None:
    """Clients put a tag behind names that have none, and the hub's host ahead of its names."""
    if name:
        host = next((each for each in HUBS if name.startswith(each)), "")
        return name.removeprefix(host).removesuffix(":latest")
    return name


def names(request: OllamaGenerationRequest) -> dict[str, str]:
    """Of the parts of its chat completion, in this request."""
    if not isinstance(request, GenerateRequest):
        return NAMES
    if request.suffix:
        return {**NAMES, "max_tokens": "options.num_predict"}
    place = f"messages.{1 if request.system else 0}"
    images = {f"{place}.content.{index}": f"images.{index}." for index in range(len(request.images))}
    return {**NAMES, "messages": "prompt.", "messages.0": "system." if request.system else "prompt.", **images}


def ignored(request: OllamaGenerationRequest) -> Iterator[str]:
    """What models are loaded with is the operator's to say: `keep_alive`, `options.num_ctx` and the like."""
    yield from unknown_keys(request, UNSUPPORTED)
    if request.options.repeat_last_n not in WINDOWS and _penalises(request.options):
        yield "options.repeat_last_n"


def _penalises(options: Options) -> bool:
    return options.repeat_penalty not in (None, 1) or options.presence_penalty != 0 or options.frequency_penalty != 0


def sampling(options: Options) -> dict[str, Any]:
    is_penalised = options.repeat_last_n != 0
    return {
        "max_completion_tokens": options.num_predict if options.num_predict > 0 else None,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "seed": None if options.seed == -1 else options.seed,
        "stop": options.stop,
        "repetition_penalty": options.repeat_penalty if is_penalised else 1.0,
        "presence_penalty": options.presence_penalty if is_penalised else 0.0,
        "frequency_penalty": options.frequency_penalty if is_penalised else 0.0,
    }


def _format(format: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(format, dict):
        schema = {"name": "format", "schema": format, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {"response_format": {"type": "json_object"}} if format else {}


def _thinking(request: OllamaGenerationRequest) -> dict[str, Any]:
    if request.think is None:
        return {}
    if request.think is False:  # which is no complaint about a model that cannot do without
        return {"chat_template_kwargs": {"enable_thinking": False}}
    fields: dict[str, Any] = {"enable_thinking": True}
    return fields | ({"reasoning_effort": request.think} if isinstance(request.think, str) else {})


def _tool(tool: OllamaTool) -> JsonObject:
    return {"type": "function", "function": tool.function.model_dump()}


def _content(text: str, images: Iterable[str]) -> str | list[JsonObject]:
    pictures = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
    return [*pictures, {"type": "text", "text": text}] if pictures else text


def _data_url(image: str) -> str:
    kind = next((kind for begin, kind in IMAGES.items() if image.startswith(begin)), "png")
    return f"data:image/{kind};base64,{image}"


class _MessageBuilder:
    """Messages as a chat takes them: each result of a tool names the call that it answers."""

    def __init__(self, messages: Iterable[OllamaMessage]) -> None:
        self._open: dict[str | None, deque[str]] = defaultdict(deque)  # calls without a result, by their tool's name
        self._calls = 0
        self.written = [self._message(index, each) for index, each in enumerate(messages)]

    def _message(self, index: int, message: OllamaMessage) -> JsonObject:
        if message.role == "tool":
            content = _content(message.content, message.images)
            return {"role": "tool", "content": content, "tool_call_id": self._answered(index, message)}
        written: JsonObject = {"role": message.role, "content": _content(message.content, message.images)}
        if message.thinking is not None:
            written["reasoning_content"] = message.thinking
        if message.tool_calls:
            written["tool_calls"] = [self._call(each) for each in message.tool_calls]
        return written

    def _call(self, call: OllamaToolCall) -> JsonObject:
        id = call.id or f"call_{self._calls}"
        self._calls += 1
        self._open[call.function.name].append(id)
        arguments = json.dumps(call.function.arguments, ensure_ascii=False)
        return {"id": id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}

    def _answered(self, index: int, message: OllamaMessage) -> str:
        if message.tool_call_id:
            for calls in self._open.values():
                if message.tool_call_id in calls:
                    calls.remove(message.tool_call_id)
            return message.tool_call_id
        names = [message.tool_name] if message.tool_name else list(self._open)
        for calls in (self._open[name] for name in names):
            if calls:
                return calls.popleft()
        place = f"messages.{index}.tool_name"
        raise InvalidRequest(f"'{place}': no call waits for this result", param=place)
