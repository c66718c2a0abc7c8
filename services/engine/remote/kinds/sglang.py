"""SGLang: `POST /generate`, its native route.

Ids and logprobs come whole with each event, or with `--incremental-streaming-output` only the new ones.
"""

import json
from collections.abc import Iterator, Mapping
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
    check_reason,
    nucleus,
)

REFUSALS = Refusals("SGLang")
MAX_PENALTY = 2
SERVER_INFO = ("/server_info", "/get_server_info")  # newer and older servers
SEEDED = "seeded"  # started with --enable-deterministic-inference: otherwise it leaves seeds aside
LOW_FIRST = "low first"  # with --schedule-low-priority-values-first; else high priorities run first
FINISHES: Mapping[str, FinishReason] = {"stop": "stop", "length": "length"}


class SGLang:
    name = "sglang"
    owned_by = "sglang"
    path = "/generate"
    health = "/health"
    packs_vectors = False
    names_model = True
    more = SERVER_INFO

    def model(self, card: Mapping[str, Any], pages: Mapping[str, Any]) -> RemoteModel:
        info: Mapping[str, Any] = next((pages[path] for path in SERVER_INFO if pages.get(path)), {})
        length = card.get("max_model_len") or info.get("context_length")
        flags = {"enable_deterministic_inference": SEEDED, "schedule_low_priority_values_first": LOW_FIRST}
        features = {feature for flag, feature in flags.items() if info.get(flag)}
        return RemoteModel(card["id"], length, frozenset(features))

    def body(self, job: RemoteJob, model: RemoteModel) -> dict[str, Any]:
        sampling = job.job.sampling
        REFUSALS.check(
            seed=sampling.seed is not None and SEEDED not in model.features,
            frequency_penalty=abs(sampling.frequency_penalty) > MAX_PENALTY,
            presence_penalty=abs(sampling.presence_penalty) > MAX_PENALTY,
            repetition_penalty=sampling.repetition_penalty > MAX_PENALTY,
        )
        fields = {"input_ids": list(job.job.prompt), "sampling_params": _params(job), "stream": True}
        if job.cache_salt:
            fields["extra_key"] = job.cache_salt
        if job.job.priority:
            fields["priority"] = job.job.priority if LOW_FIRST in model.features else -job.job.priority
        return fields | _logprobs(job)

    def reader(self, job: RemoteJob) -> Reader:
        return SGLangReader(job)


def _params(job: RemoteJob) -> dict[str, Any]:
    sampling = job.job.sampling
    temperature, top_p = nucleus(job.job)
    fields: dict[str, Any] = {
        "max_new_tokens": job.max_tokens,
        "min_new_tokens": sampling.min_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "ignore_eos": sampling.ignore_eos,
        "stop_token_ids": list(sampling.stop_token_ids),
        "skip_special_tokens": False,
        "no_stop_trim": True,
    }
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.seed is not None:
        fields["sampling_seed"] = sampling.seed
    return fields | (_grammar(sampling.grammar) if sampling.grammar else {})


def _grammar(spec: GrammarSpec) -> dict[str, Any]:
    if not spec.before:
        match spec.kind:
            case "json_schema":
                return {"json_schema": json.dumps(without_options(json.loads(spec.source)))}
            case "regex":
                return {"regex": spec.source}
            case "lark" if is_gbnf(spec.source):
                return {"ebnf": spec.source}
    raise REFUSALS.grammar(spec)


def _logprobs(job: RemoteJob) -> dict[str, Any]:
    of_answer, of_prompt = job.job.sampling.logprobs, job.job.sampling.prompt_logprobs
    if of_answer is None and of_prompt is None:
        return {}
    fields: dict[str, Any] = {"return_logprob": True, "top_logprobs_num": max(of_answer or 0, of_prompt or 0)}
    return fields if of_prompt is None else {**fields, "logprob_start_len": 0}


class SGLangReader:
    def __init__(self, job: RemoteJob) -> None:
        self._number = job.job.sampling.logprobs
        self._prompt_number = job.job.sampling.prompt_logprobs
        self._ids: list[int] = []

    def read(self, event: Any) -> Output:
        check_error(event)
        meta = event["meta_info"]
        prompt = self._prompt(meta) if not self._ids else ()
        ids, is_whole = self._new(event["output_ids"], meta["completion_tokens"])
        start = len(self._ids) if is_whole else 0
        self._ids += ids
        tokens = map(OutputToken, ids) if self._number is None else _weighed(ids, meta, "output", start, self._number)
        return Output(tuple(tokens), _finish(meta.get("finish_reason")), meta.get("cached_tokens"), prompt)

    def _new(self, ids: list[int], total: int) -> tuple[list[int], bool]:
        """Those that were not read yet, and whether the event has all of the answer's."""
        read = len(self._ids)
        if len(ids) == total - read and read:
            return ids, False
        if len(ids) >= read and ids[:read] == self._ids:
            return ids[read:], True
        return ids, False

    def _prompt(self, meta: Mapping[str, Any]) -> tuple[OutputToken, ...]:
        if self._prompt_number is None:
            return ()
        ids = [entry[1] for entry in meta["input_token_logprobs"]]
        return tuple(_weighed(ids, meta, "input", 0, self._prompt_number))


def _weighed(ids: list[int], meta: Mapping[str, Any], part: str, start: int, number: int) -> Iterator[OutputToken]:
    logprobs = meta[f"{part}_token_logprobs"][start:]
    tops = (meta.get(f"{part}_top_logprobs") or [])[start:] if number else []
    for place, token in enumerate(ids):
        logprob = logprobs[place][0] if place < len(logprobs) else None
        top = (tops[place] or [])[:number] if place < len(tops) else []
        yield OutputToken(token, logprob, tuple((entry[1], entry[0]) for entry in top))


def _finish(reason: Any) -> FinishReason | None:
    if reason is None:
        return None
    kind = reason["type"]
    check_reason(kind, FINISHES)
    return FINISHES[kind]
