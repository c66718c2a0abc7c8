"""A request and the history before it -> the prompt: the chat template rendered and encoded."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from schemas import json_size
from schemas.chat_schema import ChatCompletionRequest, ChatMessage, ServedTier
from schemas.tool_schema import CustomToolCall, MessageToolCall
from services.chat.parsing.input_text import INPUT
from services.chat.request import contents, control_tokens, refusals, tool_check, turn_order
from services.chat.request import sampling as sampled
from services.chat.request.contents import Illustration
from services.chat.request.encoding import Room, check_fits, encode
from services.chat.request.long_text import CHUNK
from services.chat.request.refusals import refuse
from services.engine.base import GrammarSpec, Message, PlacedImage, SamplingParams, ThinkingLimit, Tokenizer
from services.errors import InvalidRequest

# Parts of the contract that this server does not serve (yet), each with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    **refusals.OF_ALL,
    "audio": (),
    "chat_template": (),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
}


# What `apply_chat_template` takes for itself; all else goes to the template.
RESERVED = {
    *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs", "self"),
    "sanitize_control_tokens",
}


PRIORITIES: dict[ServedTier | None, int] = {"flex": 1, "priority": -1}


ANY = Room()  # for whatever is written


def check(request: ChatCompletionRequest) -> GrammarSpec | None:
    """Refuses by name what would otherwise be ignored. Returns the grammar that the request asks for."""
    refuse(request, UNSUPPORTED)
    tool_check.check(request)
    answer = sampled.check(request, max_tokens(request, None))
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("'%s' goes with '%s': true only", "top_logprobs", "logprobs")
    if request.n > 1 and request.conversation is not None:
        raise InvalidRequest("'%s' must be 1 in a conversation: one reply continues it", "n")
    if request.parent_item is not None and request.conversation is None:
        raise InvalidRequest("'%s' goes with '%s' only", "parent_item", "conversation")
    if request.continue_final_message and request.add_generation_prompt:
        raise InvalidRequest("'%s' goes without '%s'", "add_generation_prompt", "continue_final_message")
    for name in RESERVED & set(request.chat_template_kwargs):
        raise InvalidRequest("'%s' is no argument of a template", f"chat_template_kwargs.{name}")
    return answer


def unknown_keys(request: ChatCompletionRequest) -> list[str]:
    return refusals.unknown_keys(request, UNSUPPORTED)


def max_tokens(request: ChatCompletionRequest, default: int | None) -> int | None:
    return request.max_completion_tokens or request.max_tokens or default


def sampling(
    request: ChatCompletionRequest,
    max_tokens: int | None,
    *,
    stop: tuple[str, ...] = (),
    grammar: GrammarSpec | None = None,
    thinking: ThinkingLimit | None = None,
) -> SamplingParams:
    logprobs = request.top_logprobs if request.logprobs else None
    return sampled.params(request, max_tokens, logprobs=logprobs, stop=stop, grammar=grammar, thinking=thinking)


@dataclass(frozen=True, slots=True)
class Prompt:
    ids: tuple[int, ...]
    images: tuple[PlacedImage, ...] = ()
    truncated: int | None = None  # tokens that were left out in front of it

    def last(self, keep: int) -> "Prompt":
        """Its last tokens only. Raises InvalidRequest where images would be cut."""
        if self.images and keep < len(self.ids):
            raise InvalidRequest("A prompt with images in it is not truncated", param="truncate_prompt_tokens")
        cut = (self.truncated or 0) + max(0, len(self.ids) - keep)
        return Prompt(self.ids[-keep:], self.images, cut)


def encoded(
    messages: list[Message],
    tokenizer: Tokenizer,
    template: Mapping[str, Any],
    illustration: Illustration | None = None,
    room: Room = ANY,
) -> Prompt:
    _check_contents(messages, tokenizer, room)
    guarded = control_tokens.guarded(messages, template, tokenizer)
    text = render(guarded.messages, tokenizer, guarded.template, illustration)
    taken = encode(text, guarded.tokenizer, room, "messages", add_special_tokens=not tokenizer.chat_template)
    images = illustration.placed(taken.ids) if illustration else ()
    return Prompt(taken.ids, images, taken.cut or None)


def _check_contents(messages: Iterable[Message], tokenizer: Tokenizer, room: Room) -> None:
    """Before they are rendered, which holds the interpreter's lock. Of answers, templates leave some parts out."""
    for each in messages:
        if each["role"] != "assistant" and isinstance(text := each.get("content"), str) and len(text) > CHUNK:
            check_fits(text.strip(), tokenizer, room, "messages")


def priority(request: ChatCompletionRequest) -> int:
    return request.priority + PRIORITIES.get(served_tier(request.service_tier), 0)


def served_tier(tier: str | None) -> ServedTier | None:
    """A tier that nobody knows is served as any request is."""
    match tier:
        case None | "flex" | "priority":
            return tier
        case "fast" | "ultrafast":
            return "priority"
        case _:
            return "default"


def template(request: ChatCompletionRequest, **more: object) -> dict[str, Any]:
    """What the chat template is called with, besides the messages; what the request says itself comes before `more`."""
    continues = request.continue_final_message
    begins = not continues if request.add_generation_prompt is None else request.add_generation_prompt
    return {
        "add_generation_prompt": begins,
        **({"continue_final_message": True} if continues else {}),
        **more,
        **request.chat_template_kwargs,
    }


def echo(request: ChatCompletionRequest) -> str:
    """What the answer begins with."""
    last = request.messages[-1]
    return str(message(last)["content"]) if request.echo and last.role == "assistant" else ""


def messages(request: ChatCompletionRequest, history: Iterable[Message], system_prompt: str | None) -> list[Message]:
    """History, then the request's own messages; the server's system prompt in front where neither has one."""
    all_messages = [*history, *(message(each) for each in request.messages)]
    tool_check.check_results(all_messages, len(all_messages) - len(request.messages))
    if system_prompt and all(each["role"] != "system" for each in all_messages):
        all_messages.insert(0, {"role": "system", "content": system_prompt})
    return all_messages


def message(chat_message: ChatMessage) -> Message:
    content = contents.kept(chat_message.content) if chat_message.content is not None else chat_message.refusal or ""
    rendered: Message = {"role": role(chat_message.role), "content": content}
    if chat_message.reasoning_content:
        rendered["reasoning_content"] = chat_message.reasoning_content
    if chat_message.tool_calls:
        rendered["tool_calls"] = [_call(each) for each in chat_message.tool_calls]
    if chat_message.tool_call_id is not None:
        rendered["tool_call_id"] = chat_message.tool_call_id
    return rendered


def _call(tool_call: MessageToolCall | CustomToolCall) -> dict[str, Any]:
    if isinstance(tool_call, CustomToolCall):  # as its tool is shown
        function: dict[str, Any] = {"name": tool_call.custom.name, "arguments": {INPUT: tool_call.custom.input}}
        return {"id": tool_call.id, "type": "function", "function": function}
    function = {"name": tool_call.function.name, "arguments": _arguments(tool_call.function.arguments)}
    return {"id": tool_call.id, "type": "function", "function": function}


def _arguments(text: str) -> object:
    """An object, as templates expect it; text that is no JSON object stays text."""
    try:
        json_size.check(text.encode(errors="replace"))
        read = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return read if isinstance(read, dict) else text


def role(name: str) -> str:
    """Templates know no developer; its messages are the system's."""
    return "system" if name == "developer" else name


def render(
    messages: list[Message],
    tokenizer: Tokenizer,
    template: Mapping[str, Any],
    illustration: Illustration | None = None,
) -> str:
    form = contents.form(tokenizer)
    placeholder = illustration.reader.placeholder if illustration else ""
    if illustration or not form.strings:
        messages = contents.shaped(messages, form, placeholder)
    text = _templated(messages, tokenizer, template) if tokenizer.chat_template else _plain(messages, template)
    return illustration.fill(text) if illustration else text


def _templated(messages: list[Message], tokenizer: Tokenizer, template: Mapping[str, Any]) -> str:
    refused: list[Exception] = []
    for ordered in turn_order.orders(messages):
        try:
            return str(tokenizer.apply_chat_template(ordered, **template, tokenize=False))
        except TemplateError as error:  # for instance of roles that do not alternate
            refused.append(error)
        except (TypeError, ValueError, RecursionError) as error:  # it stumbles over arguments it does not expect
            refused.append(error)
            break
    first = refused[0]
    raise InvalidRequest(f"The model's chat template refuses these messages: {first}", param="messages") from first


def _plain(messages: list[Message], template: Mapping[str, Any]) -> str:
    """For models that were never taught to chat: a single message as it is, several as a script to be continued."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    begun = ["Assistant:"] if template["add_generation_prompt"] else []
    return "\n".join([*(f"{each['role'].capitalize()}: {each['content']}" for each in messages), *begun])
