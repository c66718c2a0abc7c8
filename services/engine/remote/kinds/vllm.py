"""vLLM: `POST /v1/completions` with `return_token_ids` (0.10.2 and later).

Cached tokens are told with `--enable-prompt-tokens-details`, priorities are taken with `--scheduling-policy priority`.
"""

import json
from collections.abc import Mapping
from typing import Any

from services.engine.base import GrammarSpec
from services.engine.grammar.lark import is_gbnf, lark_without_head, without_options
from services.engine.remote.kinds import completions
from services.engine.remote.kinds.base import Reader, Refusals, RemoteJob, RemoteModel

REFUSALS = Refusals("vLLM")
MAX_PENALTY = 2


class VLLM:
    name = "vllm"
    owned_by = "vllm"
    path = "/v1/completions"
    health = "/health"
    more: tuple[str, ...] = ()

    def model(self, card: Mapping[str, Any], pages: Mapping[str, Any]) -> RemoteModel:
        return RemoteModel(card["id"], card.get("max_model_len"))

    def body(self, job: RemoteJob, model: RemoteModel) -> dict[str, Any]:
        sampling = job.job.sampling
        REFUSALS.check(
            frequency_penalty=abs(sampling.frequency_penalty) > MAX_PENALTY,
            presence_penalty=abs(sampling.presence_penalty) > MAX_PENALTY,
        )
        fields = completions.body(job, model.name)
        if sampling.grammar:
            fields["structured_outputs"] = structured(sampling.grammar, job.markers)
        return fields

    def reader(self, job: RemoteJob) -> Reader:
        return completions.CompletionsReader(job)


def structured(spec: GrammarSpec, markers: Mapping[str, int]) -> dict[str, Any]:
    """Its own forms where they say all; else Lark, of which xgrammar does not take markers that are tokens."""
    if not spec.before:
        match spec.kind:
            case "json_schema":
                return {"json": without_options(json.loads(spec.source))}
            case "regex":
                return {"regex": spec.source}
            case "lark" if is_gbnf(spec.source):
                return {"grammar": spec.source}
    return {"grammar": lark_without_head(spec, markers)}
