"""OpenAI's completions with token ids both ways, as vLLM has extended them and Parley has them, too."""

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from services.engine.base import FinishReason, GrammarSpec, Job, SamplingParams
from services.engine.grammar.lark import is_gbnf, lark_without_head, without_options
from services.engine.remote.kinds.base import (
    NOTHING,
    Output,
    OutputToken,
    Reader,
    RemoteJob,
    RemoteModel,
    UnexpectedAnswer,
    check_error,
    check_reason,
    nucleus,
)

TOKEN_ID = "token_id:"  # how tokens are written with return_tokens_as_token_ids
FINISHES: Mapping[str, FinishReason] = {"stop": "stop", "length": "length"}


class CompletionsKind:
    """What servers of these completions have in common; a `Kind` adds its names and what it refuses."""

    path = "/v1/completions"
    more: tuple[str, ...] = ()
    packs_vectors = True
    names_model = True
    reads_options = True  # of a JSON schema: how it is compiled

    def refuse(self, sampling: SamplingParams) -> None:
        """Raises UnsupportedParameter."""
        raise NotImplementedError

    def model(self, card: Mapping[str, Any], pages: Mapping[str, Any]) -> RemoteModel:
        return RemoteModel(card["id"], card.get("max_model_len"))

    def body(self, job: RemoteJob, model: RemoteModel) -> dict[str, Any]:
        sampling = job.job.sampling
        self.refuse(sampling)
        fields = body(job, model.name)
        if sampling.grammar:
            fields["structured_outputs"] = self._structured(sampling.grammar, job.markers)
        return fields

    def reader(self, job: RemoteJob) -> Reader:
        return CompletionsReader(job)

    def _structured(self, spec: GrammarSpec, markers: Mapping[str, int]) -> dict[str, Any]:
        """The server's own forms where they say all; else Lark, whose markers are token ids there as here."""
        if not spec.before:
            match spec.kind:
                case "json_schema":
                    schema = json.loads(spec.source)
                    return {"json": schema if self.reads_options else without_options(schema)}
                case "regex":
                    return {"regex": spec.source}
                case "lark" if is_gbnf(spec.source):
                    return {"grammar": spec.source}
        return {"grammar": lark_without_head(spec, markers)}


def body(job: RemoteJob, model: str | None) -> dict[str, Any]:
    """All that sampling depends on is given: what is left out would be the server's own default."""
    sampling = job.job.sampling
    temperature, top_p = nucleus(job.job)
    fields: dict[str, Any] = {
        "prompt": list(job.job.prompt),
        "max_tokens": job.max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": sampling.top_k or 0,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "min_tokens": sampling.min_tokens,
        "ignore_eos": sampling.ignore_eos,
        "stop_token_ids": list(sampling.stop_token_ids),
        "return_token_ids": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return fields | _optional(job, model) | _logprobs(job.job)


def _optional(job: RemoteJob, model: str | None) -> dict[str, Any]:
    sampling = job.job.sampling
    optional = {
        "model": model,
        "seed": sampling.seed,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
        "cache_salt": job.cache_salt,
        "priority": job.job.priority or None,
    }
    return {name: value for name, value in optional.items() if value is not None}


def num_logprobs(job: Job) -> int | None:
    """Completions have one number for the prompt's tokens and the answer's."""
    counts = [each for each in (job.sampling.logprobs, job.sampling.prompt_logprobs) if each is not None]
    return max(counts, default=None)


def _logprobs(job: Job) -> dict[str, Any]:
    number = num_logprobs(job)
    if number is None:
        return {}
    echo = {"echo": True} if job.sampling.prompt_logprobs is not None else {}
    return {"logprobs": number, "return_tokens_as_token_ids": True, **echo}


class CompletionsReader:
    """Pairs ids and logprobs, which need not come with the same event."""

    def __init__(self, job: RemoteJob) -> None:
        sampling = job.job.sampling
        self._number = sampling.logprobs
        self._prompt_number = sampling.prompt_logprobs
        self._has_logprobs = num_logprobs(job.job) is not None
        self._prompt_left = 0 if sampling.prompt_logprobs is None else len(job.job.prompt)
        self._unpaired: deque[int] = deque()

    def read(self, event: Any) -> Output:
        check_error(event)
        cached = _cached(event.get("usage"))
        if not event["choices"]:
            return NOTHING if cached is None else Output(cached_tokens=cached)
        (choice,) = event["choices"]
        reason = choice.get("finish_reason")
        check_reason(reason, FINISHES)
        prompt, tokens = self._tokens(choice, is_last=reason is not None)
        return Output(tokens, FINISHES.get(reason) if reason else None, cached, prompt)

    def _tokens(
        self, choice: Mapping[str, Any], *, is_last: bool
    ) -> tuple[tuple[OutputToken, ...], tuple[OutputToken, ...]]:
        ids = _ids(choice.get("token_ids"))
        if not self._has_logprobs:
            return (), tuple(map(OutputToken, ids))
        self._unpaired.extend(ids)
        entries = list(_entries(choice.get("logprobs")))
        prompt = entries[: self._prompt_left]
        self._prompt_left -= len(prompt)
        tokens = [paired for entry in entries[len(prompt) :] for paired in self._paired(entry)]
        if is_last:
            tokens += map(OutputToken, self._unpaired)
            self._unpaired.clear()
        return tuple(_first(each, self._prompt_number) for each in prompt), tuple(tokens)

    def _paired(self, entry: OutputToken) -> Iterator[OutputToken]:
        """The token, and those before it that have no logprob."""
        if entry.id not in self._unpaired:
            raise UnexpectedAnswer("logprobs of a token that was not sent")
        while (token := self._unpaired.popleft()) != entry.id:
            yield OutputToken(token)
        yield OutputToken(token) if self._number is None else _first(entry, self._number)


def _first(token: OutputToken, number: int | None) -> OutputToken:
    return OutputToken(token.id, token.logprob, token.top[: number or 0])


def _ids(value: Any) -> Sequence[int]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(each) is int for each in value):
        raise UnexpectedAnswer("token_ids are no token ids")
    return value


def _entries(logprobs: Mapping[str, Any] | None) -> Iterator[OutputToken]:
    if logprobs is None:
        return
    columns = (logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"])
    for token, logprob, top in zip(*columns, strict=True):
        ranked = sorted((top or {}).items(), key=lambda entry: -entry[1])
        yield OutputToken(_id(token), logprob, tuple((_id(name), value) for name, value in ranked))


def _id(name: str) -> int:
    if not name.startswith(TOKEN_ID):
        raise UnexpectedAnswer("logprobs are not by token ids")
    return int(name.removeprefix(TOKEN_ID))


def _cached(usage: Mapping[str, Any] | None) -> int | None:
    details = (usage or {}).get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens")
    return cached if isinstance(cached, int) else None
