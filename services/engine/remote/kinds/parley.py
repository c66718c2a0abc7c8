"""Another Parley: `POST /v1/completions`."""

from services.engine.base import SamplingParams
from services.engine.remote.kinds.base import Refusals
from services.engine.remote.kinds.completions import CompletionsKind

REFUSALS = Refusals("Parley")
MAX_TEMPERATURE = 2  # of its completions: OpenAI's limits
MAX_PENALTY = 2


class Parley(CompletionsKind):
    name = "parley"
    owned_by = "parley"
    health = "/health/ready"
    names_model = False

    def refuse(self, sampling: SamplingParams) -> None:
        REFUSALS.check(
            temperature=sampling.temperature > MAX_TEMPERATURE,
            frequency_penalty=abs(sampling.frequency_penalty) > MAX_PENALTY,
            presence_penalty=abs(sampling.presence_penalty) > MAX_PENALTY,
        )
