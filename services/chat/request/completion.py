"""A legacy completion request -> its jobs: prompts as token ids, each with as many choices as are sampled of it."""

from dataclasses import dataclass

from schemas.completion_schema import CompletionRequest
from services import affinity
from services.chat.request import infill, refusals, sampling
from services.chat.request.encoding import Room, encode
from services.chat.request.prompt import Prompt
from services.chat.request.refusals import refuse
from services.engine.base import GrammarSpec, Job, SamplingParams, Tokenizer
from services.errors import InvalidRequest, UnsupportedParameter

MAX_CHOICES = 256  # of all prompts together

# Parts of the contract that are not served (yet), each with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[object, ...]] = refusals.OF_ALL


def check(request: CompletionRequest) -> GrammarSpec | None:
    """Refuses by name what would otherwise be ignored. Returns the grammar that the request asks for."""
    refuse(request, UNSUPPORTED)
    answer = sampling.check(request, request.max_tokens)
    if request.max_tokens == 0 and not request.echo:
        raise InvalidRequest("'%s' may be 0 with '%s' only", "max_tokens", "echo")
    _check_best_of(request)
    _check_suffix(request)
    if len(request.prompts) * num_sampled(request) > MAX_CHOICES:
        raise InvalidRequest(f"'%s': prompts and choices make more than {MAX_CHOICES} answers", "n")
    return answer


def _check_best_of(request: CompletionRequest) -> None:
    if request.best_of is None or request.best_of == request.n:
        return
    if request.echo and request.logprobs is not None:
        raise UnsupportedParameter("best_of", "is not supported together with '%s' and '%s'", "echo", "logprobs")
    if request.best_of < request.n:
        raise InvalidRequest("'%s' must not be less than '%s'", "best_of", "n")
    if request.stream:
        raise InvalidRequest("'%s' cannot be streamed: the best is known when all are whole", "best_of")


def _check_suffix(request: CompletionRequest) -> None:
    if not request.suffix:
        return
    if request.echo:
        raise UnsupportedParameter("suffix", "is not supported together with '%s'", "echo")
    if request.truncate_prompt_tokens is not None:  # what is cut off first would be the mark in front
        raise UnsupportedParameter("suffix", "is not supported together with '%s'", "truncate_prompt_tokens")


def unknown_keys(request: CompletionRequest) -> list[str]:
    return refusals.unknown_keys(request, UNSUPPORTED)


def num_sampled(request: CompletionRequest) -> int:
    """Choices of each prompt, those included that are not among the best."""
    return request.best_of or request.n


@dataclass(frozen=True, slots=True)
class Jobs:
    jobs: list[Job]
    prompts: tuple[int, ...]  # tokens of each
    echoes: list[str]  # for each job
    truncated: int | None  # tokens cut off them all, if that was asked for


def jobs(
    id: str, request: CompletionRequest, tokenizer: Tokenizer, max_length: int, owner: str, answer: GrammarSpec | None
) -> Jobs:
    """`answer`: the grammar that the request asks for, as `check` returns it."""
    params = _params(request, answer, tokenizer)
    keep = sampling.kept_tokens(request, params.max_tokens, max_length)
    room = Room(max_length, keep)
    prompts = [_prompt(index, request, tokenizer, room) for index in range(len(request.prompts))]
    if keep is not None:
        prompts = [prompt.last(keep) for prompt in prompts]
    made = [
        Job(
            id,
            prompt.ids,
            params,
            request.priority,
            param=request.name_of(index),
            truncated=prompt.truncated,
            owner=owner,
            cache_salt=request.cache_salt or "",
            affinity=affinity.current.get(),
        )
        for index, prompt in enumerate(prompts)
    ]
    texts = [_text(prompt, tokenizer) if request.echo else "" for prompt in request.prompts]
    n = num_sampled(request)
    return Jobs(
        jobs=[choice for job in made for choice in sampling.choices(job, n)],
        prompts=tuple(len(job.prompt) for job in made),
        echoes=[text for text in texts for _ in range(n)],
        truncated=None if request.truncate_prompt_tokens is None else sum(job.truncated or 0 for job in made),
    )


def _params(request: CompletionRequest, answer: GrammarSpec | None, tokenizer: Tokenizer) -> SamplingParams:
    """The likeliest of several answers is found by its tokens' logprobs, whether or not these were asked for."""
    logprobs = 0 if request.logprobs is None and num_sampled(request) > request.n else request.logprobs
    return sampling.params(
        request,
        max(1, request.max_tokens),
        stop=tuple(request.stop),
        grammar=answer,
        stop_token_ids=infill.end_tokens(tokenizer) if request.suffix else (),
        logprobs=logprobs,
        prompt_logprobs=request.logprobs if request.echo else None,
    )


def _prompt(index: int, request: CompletionRequest, tokenizer: Tokenizer, room: Room) -> Prompt:
    prompt = request.prompts[index]
    if request.suffix:
        prompt = infill.infilled(prompt, request.suffix, tokenizer)
    if isinstance(prompt, list):
        return Prompt(tuple(prompt))
    param = request.name_of(index)
    taken = encode(prompt, tokenizer, room, param, add_special_tokens=request.add_special_tokens)
    return Prompt(taken.ids, truncated=taken.cut or None)


def _text(prompt: str | list[int], tokenizer: Tokenizer) -> str:
    return prompt if isinstance(prompt, str) else str(tokenizer.decode(prompt))
