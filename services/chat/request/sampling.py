"""Sampling parameters of a request, whatever kind of request it is."""

from dataclasses import replace
from typing import TypeVar

from pydantic import BaseModel

from schemas.generation_schema import GenerationRequest
from services.chat.request import structure
from services.engine.base import GrammarSpec, Job, SamplingDefaults, SamplingParams, ThinkingLimit
from services.errors import InvalidRequest

R = TypeVar("R", bound=BaseModel)


def apply_defaults(request: R, defaults: SamplingDefaults) -> R:
    """With what the model has for all that the request names nothing of."""
    missing = {name: value for name, value in defaults.given.items() if getattr(request, name, 0) is None}
    return request.model_copy(update=missing) if missing else request


def check(request: GenerationRequest, limit: int | None) -> GrammarSpec | None:
    """Refuses what no single field shows, and returns the grammar of the answer; `limit`: its tokens at most."""
    grammar = structure.grammar(request)
    if limit and min_tokens(request) > limit:
        raise InvalidRequest("'%s' is more than the limit of the answer", "min_tokens")
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("'%s' goes with '%s': true only", "stream_options", "stream")
    return grammar


def params(
    request: GenerationRequest,
    max_tokens: int | None,
    *,
    stop: tuple[str, ...],
    grammar: GrammarSpec | None,
    stop_token_ids: tuple[int, ...] = (),
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    thinking: ThinkingLimit | None = None,
) -> SamplingParams:
    """Of a request that is settled: what neither it nor the model names is as OpenAI's API says.

    `stop_token_ids`: besides those of the request.
    """
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=request.top_k if request.top_k is not None and request.top_k > 0 else None,
        seed=request.seed,
        stop=stop,
        min_p=request.min_p or 0.0,
        repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        logit_bias=request.logit_bias,
        min_tokens=min_tokens(request),
        ignore_eos=request.ignore_eos,
        stop_token_ids=(*request.stop_token_ids, *stop_token_ids),
        include_stop=request.include_stop_str_in_output,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
        thinking=thinking,
    )


def min_tokens(request: GenerationRequest) -> int:
    """At the top level, or as FastDeploy's clients send it, a number in the metadata."""
    in_metadata = request.metadata.get("min_tokens", 0)
    if request.min_tokens is not None:
        return request.min_tokens
    if isinstance(in_metadata, str):  # a note of the client's own
        return 0
    if in_metadata < 0 or in_metadata != int(in_metadata):
        raise InvalidRequest("'%s' must be a whole number, 0 or more", "metadata.min_tokens")
    return int(in_metadata)


def kept_tokens(request: GenerationRequest, max_tokens: int | None, max_length: int) -> int | None:
    """Of the prompt's last, where the request wants no more of them."""
    keep = request.truncate_prompt_tokens
    return max(1, max_length - (max_tokens or 1)) if keep == -1 else keep


def choices(job: Job, n: int) -> list[Job]:
    """One job for each choice, all of one prompt. With a seed each has its own: the given one, and those after it."""
    seed = job.sampling.seed
    return [job] + [
        replace(job, sampling=replace(job.sampling, seed=None if seed is None else seed + index))
        for index in range(1, n)
    ]
