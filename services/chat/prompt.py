"""A request and the history before it -> a Job: the chat template rendered, the sampling parameters settled."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from schemas.chat_schema import ChatCompletionRequest, ChatMessage
from services.engine.base import Job, Message, SamplingParams, Tokenizer
from services.errors import InvalidRequest, UnsupportedParameter

# Parts of the contract that this server does not serve (yet), each with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "audio": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "echo": (False,),
    "enable_thinking": (),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "parallel_tool_calls": (),
    "prediction": (),
    "priority": (0,),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "thinking_token_budget": (),
    "tool_choice": ("none",),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncate_prompt_tokens": (),
    "verbosity": (),
    "web_search_options": (),
}


def check(request: ChatCompletionRequest) -> None:
    """Refuses by name what would otherwise be ignored."""
    for name, value in (request.model_extra or {}).items():
        if name in UNSUPPORTED and value not in UNSUPPORTED[name]:
            raise UnsupportedParameter(name)
    limit = request.max_completion_tokens or request.max_tokens
    if limit and _min_tokens(request) > limit:
        raise InvalidRequest("'min_tokens' is more than the limit of the answer", param="min_tokens")
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("'stream_options' goes with 'stream': true only", param="stream_options")
    if request.stream_options is not None and request.stream_options.include_obfuscation:
        raise UnsupportedParameter("stream_options.include_obfuscation")


def unknown_keys(request: ChatCompletionRequest) -> list[str]:
    return sorted(set(request.model_extra or {}) - set(UNSUPPORTED))


def sampling(request: ChatCompletionRequest, max_tokens: int | None) -> SamplingParams:
    return SamplingParams(
        max_tokens=request.max_completion_tokens or request.max_tokens or max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k if request.top_k > 0 else None,
        seed=request.seed,
        stop=tuple(request.stop),
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        logit_bias=request.logit_bias,
        min_tokens=_min_tokens(request),
        ignore_eos=request.ignore_eos,
        stop_token_ids=tuple(request.stop_token_ids),
        include_stop=request.include_stop_str_in_output,
    )


def _min_tokens(request: ChatCompletionRequest) -> int:
    """At the top level, or as FastDeploy's clients send it, a number in the metadata."""
    given = request.metadata.get("min_tokens", 0)
    if request.min_tokens is not None:
        return request.min_tokens
    if isinstance(given, str):  # a note of the client's own
        return 0
    if given < 0 or given != int(given):
        raise InvalidRequest("'metadata.min_tokens' must be a whole number, 0 or more", param="metadata.min_tokens")
    return int(given)


def job(id: str, messages: list[Message], params: SamplingParams, tokenizer: Tokenizer) -> Job:
    return Job(id, tuple(render(messages, tokenizer)), params)


def messages(request: ChatCompletionRequest, history: Iterable[Message], system_prompt: str | None) -> list[Message]:
    """History, then the request's own messages; the server's system prompt in front where neither has one."""
    said = [*history, *(message(each) for each in request.messages)]
    if system_prompt and all(each["role"] != "system" for each in said):
        said.insert(0, {"role": "system", "content": system_prompt})
    return said


def message(given: ChatMessage) -> Message:
    content = text(given.content) if given.content is not None else given.refusal or ""
    return {"role": role(given.role), "content": content}


def role(name: str) -> str:
    """Templates know no developer; its messages are the system's."""
    return "system" if name == "developer" else name


def text(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    """Content as one string, the way chat templates take it."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part[part["type"]] for part in content)


def render(messages: list[Message], tokenizer: Tokenizer) -> list[int]:
    if not tokenizer.chat_template:
        return tokenizer.encode(_plain(messages))
    try:
        ids: list[int] = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except TemplateError as error:  # templates refuse, for instance, roles that do not alternate
        raise InvalidRequest(f"The model's chat template refuses these messages: {error}", param="messages") from error
    return ids


def _plain(messages: list[Message]) -> str:
    """For models that were never taught to chat: a single message as it is, several as a script to be continued."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join([*(f"{each['role'].capitalize()}: {each['content']}" for each in messages), "Assistant:"])
