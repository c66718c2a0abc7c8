"""Another Parley: `POST /v1/completions`."""

import json
from collections.abc import Mapping
from typing import Any

from services.engine.base import GrammarSpec
from services.engine.grammar.lark import is_gbnf, lark_without_head
from services.engine.remote.kinds import completions
from services.engine.remote.kinds.base import Reader, Refusals, RemoteJob, RemoteModel

REFUSALS = Refusals("Parley")
MAX_TEMPERATURE = 2  # of its completions: OpenAI's limits
MAX_PENALTY = 2


class Parley:
    name = "parley"
    owned_by = "parley"
    path = "/v1/completions"
    health = "/health/ready"
    more: tuple[str, ...] = ()

    def model(self, card: Mapping[str, Any], pages: Mapping[str, Any]) -> RemoteModel:
        return RemoteModel(card["id"], card.get("max_model_len"))

    def body(self, job: RemoteJob, model: RemoteModel) -> dict[str, Any]:
        sampling = job.job.sampling
        REFUSALS.check(
            temperature=sampling.temperature > MAX_TEMPERATURE,
            frequency_penalty=abs(sampling.frequency_penalty) > MAX_PENALTY,
            presence_penalty=abs(sampling.presence_penalty) > MAX_PENALTY,
        )
        fields = completions.body(job, model.name)
        if sampling.grammar:
            fields["structured_outputs"] = _structured(sampling.grammar, job.markers)
        return fields

    def reader(self, job: RemoteJob) -> Reader:
        return completions.CompletionsReader(job)


def _structured(spec: GrammarSpec, markers: Mapping[str, int]) -> dict[str, Any]:
    """What it understands as this server does needs no translation; markers are token ids there as here."""
    if not spec.before and spec.kind == "json_schema":
        return {"json": json.loads(spec.source)}
    if not spec.before and spec.kind == "regex":
        return {"regex": spec.source}
    if not spec.before and is_gbnf(spec.source):
        return {"grammar": spec.source}
    return {"grammar": lark_without_head(spec, markers)}
