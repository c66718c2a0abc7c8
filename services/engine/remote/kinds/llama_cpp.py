"""llama.cpp's server: `POST /completion`, its native route.

Of a character that takes several tokens it sends only the last id, with the text of them all. `tokens_predicted` shows
that some are missing; they are taken to be those that the tokenizer has for the text. It ends answers at more tokens
than the model's files name, so one without text is held back until it is known whether it was such an end.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from services.engine.base import FinishReason, GrammarSpec
from services.engine.grammar.lark import is_gbnf, without_options
from services.engine.remote.kinds.base import (
    Output,
    OutputToken,
    Reader,
    Refusals,
    RemoteJob,
    RemoteModel,
    check_error,
    nucleus,
)

REFUSALS = Refusals("llama.cpp")
PROPS = "/props"
FINISHES: Mapping[str, FinishReason] = {"eos": "stop", "word": "stop", "limit": "length"}
SEEDS = 2**32 - 1  # the highest stands for a random one


class LlamaCpp:
    name = "llama.cpp"
    owned_by = "llamacpp"
    path = "/completion"
    health = "/health"
    packs_vectors = False
    names_model = True
    more = (PROPS,)

    def model(self, card: Mapping[str, Any], pages: Mapping[str, Any]) -> RemoteModel:
        settings = (pages.get(PROPS) or {}).get("default_generation_settings") or {}
        return RemoteModel(card["id"], settings.get("n_ctx"))

    def body(self, job: RemoteJob, model: RemoteModel) -> dict[str, Any]:
        sampling = job.job.sampling
        REFUSALS.check(
            min_tokens=sampling.min_tokens > 0,
            echo=sampling.prompt_logprobs is not None,
            priority=job.job.priority != 0,
            # it counts the prompt's tokens, too
            frequency_penalty=sampling.frequency_penalty != 0,
            presence_penalty=sampling.presence_penalty != 0,
        )
        fields = _params(job)
        if sampling.grammar:
            fields |= _grammar(sampling.grammar)
        return fields

    def reader(self, job: RemoteJob) -> Reader:
        return LlamaCppReader(job)


def _params(job: RemoteJob) -> dict[str, Any]:
    sampling = job.job.sampling
    temperature, top_p = nucleus(job.job)
    fields: dict[str, Any] = {
        "prompt": list(job.job.prompt),
        "n_predict": job.max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": sampling.top_k or 0,
        "min_p": sampling.min_p,
        "typical_p": 1.0,
        "repeat_penalty": sampling.repetition_penalty,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        # as far back as there are tokens; a ring buffer of that size is allocated
        "repeat_last_n": len(job.job.prompt) + job.max_tokens if sampling.repetition_penalty != 1 else 0,
        "ignore_eos": sampling.ignore_eos,
        # what others have sent is reused in any case: slots know no owners
        "cache_prompt": not job.job.cache_salt,
        "return_tokens": True,
        "stream": True,
    }
    if sampling.seed is not None:
        fields["seed"] = sampling.seed % SEEDS
    if sampling.logit_bias:
        fields["logit_bias"] = [[token, bias] for token, bias in sampling.logit_bias.items()]
    if sampling.logprobs is not None:
        fields["n_probs"] = max(1, sampling.logprobs)
    return fields


def _grammar(spec: GrammarSpec) -> dict[str, Any]:
    if not spec.before and spec.kind == "json_schema":
        return {"json_schema": without_options(json.loads(spec.source))}
    if not spec.before and spec.kind == "lark" and is_gbnf(spec.source):
        return {"grammar": spec.source}
    raise REFUSALS.grammar(spec)


class LlamaCppReader:
    def __init__(self, job: RemoteJob) -> None:
        self._job = job
        self._number = job.job.sampling.logprobs
        self._read = 0  # tokens
        self._held: tuple[OutputToken, ...] = ()

    def read(self, event: Any) -> Output:
        check_error(event)
        logprobs = event.get("completion_probabilities") or []
        tokens, self._held = (*self._held, *(self._token(token, logprobs) for token in self._ids(event))), ()
        if not event["stop"]:
            if not event["content"]:
                tokens, self._held = tokens[:-1], tokens[-1:]
            return Output(tokens)
        if event["stop_type"] == "eos" and tokens:
            tokens = (*tokens[:-1], replace(tokens[-1], is_end=True))
        return Output(tokens, FINISHES[event["stop_type"]], (event.get("timings") or {}).get("cache_n"))

    def _ids(self, event: Any) -> list[int]:
        ids: list[int] = event["tokens"]
        is_whole = self._read + len(ids) >= event["tokens_predicted"]
        self._read = event["tokens_predicted"]
        return ids if is_whole or not ids else self._encoded(event["content"]) or ids

    def _encoded(self, text: str) -> list[int]:
        """The tokens that the tokenizer has for a text; none if they do not say it."""
        ids = self._job.tokenizer.encode(text, add_special_tokens=False)
        raws = [self._job.texts.raw(token) for token in ids]
        wanted = text.encode()
        # some tokenizers begin every text with a space
        return next((ids[start:] for start in range(len(ids)) if b"".join(raws[start:]) == wanted), [])

    def _token(self, token: int, logprobs: list[Any]) -> OutputToken:
        entry = next((each for each in logprobs if each["id"] == token), None)
        if entry is None or self._number is None:
            return OutputToken(token)
        top = tuple((each["id"], each["logprob"]) for each in entry["top_logprobs"][: self._number])
        return OutputToken(token, entry["logprob"], top)
