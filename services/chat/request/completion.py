"""A legacy completion request -> its jobs: prompts as token ids, each with as many choices as are drawn of it."""

from dataclasses import dataclass, replace

from schemas.completion_schema import CompletionRequest
from services.chat.request import refusals, sampling
from services.chat.request.encoding import Encoded, Room, encode
from services.chat.request.refusals import refuse
from services.engine.base import Job, SamplingParams, Tokenizer
from services.errors import InvalidRequest, UnsupportedParameter

MAX_CHOICES = 256  # of all prompts together

# Parts of the contract that are not served (yet), each with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[object, ...]] = {**refusals.OF_ALL, "suffix": ("",)}


def check(request: CompletionRequest) -> None:
    """Refuses by name what would otherwise be ignored."""
    refuse(request, UNSUPPORTED)
    sampling.check(request, request.max_tokens)
    if request.max_tokens == 0 and not request.echo:
        raise InvalidRequest("'max_tokens' may be 0 with 'echo' only", param="max_tokens")
    _check_best_of(request)
    if len(request.prompts) * drawn(request) > MAX_CHOICES:
        raise InvalidRequest(f"'n': prompts and choices make more than {MAX_CHOICES} answers", param="n")


def _check_best_of(request: CompletionRequest) -> None:
    if request.best_of is None or request.best_of == request.n:
        return
    if request.echo and request.logprobs is not None:
        raise UnsupportedParameter("best_of", "is not supported together with 'echo' and 'logprobs'")
    if request.best_of < request.n:
        raise InvalidRequest("'best_of' must not be less than 'n'", param="best_of")
    if request.stream:
        raise InvalidRequest("'best_of' cannot be streamed: the best is known when all are whole", param="best_of")


def unknown_keys(request: CompletionRequest) -> list[str]:
    return refusals.unknown_keys(request, UNSUPPORTED)


def drawn(request: CompletionRequest) -> int:
    """Choices of each prompt, those included that are not among the best."""
    return request.best_of or request.n


@dataclass(frozen=True, slots=True)
class Jobs:
    jobs: list[Job]
    prompts: tuple[int, ...]  # tokens of each
    echoes: list[str]  # for each job
    truncated: int | None  # tokens cut off them all, if that was asked for


def jobs(id: str, request: CompletionRequest, tokenizer: Tokenizer, max_length: int) -> Jobs:
    params = _params(request)
    room = Room(max_length, sampling.kept_tokens(request, params.max_tokens, max_length))
    tokens = [_tokens(index, request, tokenizer, room) for index in range(len(request.prompts))]
    whole = [
        Job(
            id,
            each.ids,
            params,
            request.priority,
            param=request.name_of(index),
            truncated=each.cut or None,
            cache_salt=request.cache_salt or "",
        )
        for index, each in enumerate(tokens)
    ]
    made = [sampling.truncated(job, request, max_length) for job in whole]
    texts = [_text(prompt, tokenizer) if request.echo else "" for prompt in request.prompts]
    n = drawn(request)
    return Jobs(
        jobs=[choice for job in made for choice in sampling.choices(job, n)],
        prompts=tuple(len(job.prompt) for job in made),
        echoes=[text for text in texts for _ in range(n)],
        truncated=None if request.truncate_prompt_tokens is None else sum(job.truncated or 0 for job in made),
    )


def _params(request: CompletionRequest) -> SamplingParams:
    """Of several answers the likeliest is found by its tokens' logprobs, whether or not these were asked for."""
    logprobs = 0 if request.logprobs is None and drawn(request) > request.n else request.logprobs
    params = sampling.params(request, max(1, request.max_tokens), logprobs=logprobs)
    return replace(params, prompt_logprobs=request.logprobs) if request.echo else params


def _tokens(index: int, request: CompletionRequest, tokenizer: Tokenizer, room: Room) -> Encoded:
    prompt = request.prompts[index]
    if isinstance(prompt, list):
        return Encoded(tuple(prompt))
    param = request.name_of(index)
    return encode(prompt, tokenizer, room, param, add_special_tokens=request.add_special_tokens)


def _text(prompt: str | list[int], tokenizer: Tokenizer) -> str:
    return prompt if isinstance(prompt, str) else str(tokenizer.decode(prompt))
