"""Ollama's requests -> the chat completions they ask for."""

import json
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Any

from app.spec import ChatCompletionRequest, InvalidRequest, UnsupportedParameter, refuse, unknown_keys
from schemas.ollama_schema import CallOfTool, ChatRequest, GenerateRequest, Generation, Message, Options, Tool

# Each kind of image begins in its own way, in base64 too.
IMAGES = {"iVBOR": "png", "/9j/": "jpeg", "R0lG": "gif", "UklG": "webp"}
UNSUPPORTED: dict[str, tuple[object, ...]] = {"context": (), "width": (), "height": (), "steps": ()}

Part = dict[str, Any]


def chat(request: Generation) -> ChatCompletionRequest:
    refuse(request, UNSUPPORTED)
    asked = _sampling(request.options) | _format(request.format) | _thinking(request)
    asked |= {"model": model(request.model), "logprobs": request.logprobs, "top_logprobs": request.top_logprobs}
    match request:
        case ChatRequest():
            asked |= {"messages": _Script(request.messages).written}
            asked |= {"tools": [_tool(each) for each in request.tools]} if request.tools else {}
        case GenerateRequest():
            system = [{"role": "system", "content": request.system}] if request.system else []
            asked["messages"] = [*system, {"role": "user", "content": _content(request.prompt, request.images)}]
    return ChatCompletionRequest.model_validate(asked)


def model(name: str | None) -> str | None:
    """Clients put a tag behind names that have none."""
    return name.removesuffix(":latest") if name else name


def ignored(request: Generation) -> list[str]:
    """What models are loaded with is the operator's to say: `keep_alive`, `options.num_ctx` and the like."""
    return unknown_keys(request, UNSUPPORTED)


def _sampling(options: Options) -> dict[str, Any]:
    if options.num_predict == 0:
        raise InvalidRequest("'options.num_predict' must not be 0", param="options.num_predict")
    if options.repeat_penalty != 1 and options.repeat_last_n not in (None, -1, 0):
        raise UnsupportedParameter("options.repeat_last_n", "must be -1 or 0: the penalty looks at all of the text")
    return {
        "max_completion_tokens": options.num_predict if options.num_predict > 0 else None,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "seed": None if options.seed == -1 else options.seed,
        "stop": options.stop,
        "repetition_penalty": 1.0 if options.repeat_last_n == 0 else options.repeat_penalty,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
    }


def _format(format: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(format, dict):
        schema = {"name": "format", "schema": format, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {"response_format": {"type": "json_object"}} if format else {}


def _thinking(request: Generation) -> dict[str, Any]:
    if request.think is None:
        return {}
    asked: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": bool(request.think)}}
    return asked | ({"reasoning_effort": request.think} if isinstance(request.think, str) else {})


def _tool(tool: Tool) -> Part:
    return {"type": "function", "function": tool.function.model_dump()}


def _content(text: str, images: Iterable[str]) -> str | list[Part]:
    pictures = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
    return [*pictures, {"type": "text", "text": text}] if pictures else text


def _data_url(image: str) -> str:
    kind = next((kind for begin, kind in IMAGES.items() if image.startswith(begin)), "png")
    return f"data:image/{kind};base64,{image}"


class _Script:
    """Messages as a chat takes them: each result of a tool names the call that it answers."""

    def __init__(self, messages: Iterable[Message]) -> None:
        self._open: dict[str | None, deque[str]] = defaultdict(deque)  # calls without a result, by their tool's name
        self._calls = 0
        self.written = [self._message(index, each) for index, each in enumerate(messages)]

    def _message(self, index: int, message: Message) -> Part:
        if message.role == "tool":
            return {"role": "tool", "content": message.content, "tool_call_id": self._answered(index, message)}
        written: Part = {"role": message.role, "content": _content(message.content, message.images)}
        if message.thinking is not None:
            written["reasoning_content"] = message.thinking
        if message.tool_calls:
            written["tool_calls"] = [self._call(each) for each in message.tool_calls]
        return written

    def _call(self, call: CallOfTool) -> Part:
        id = call.id or f"call_{self._calls}"
        self._calls += 1
        self._open[call.function.name].append(id)
        arguments = json.dumps(call.function.arguments, ensure_ascii=False)
        return {"id": id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}

    def _answered(self, index: int, message: Message) -> str:
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
