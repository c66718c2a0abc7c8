"""vLLM: `POST /v1/completions` with `return_token_ids` (0.10.2 and later).

It reports cached tokens with `--enable-prompt-tokens-details` and takes priorities with `--scheduling-policy priority`.
Of grammars, its backend `guidance` takes markers that are tokens; xgrammar does not.
"""

from services.engine.base import SamplingParams
from services.engine.remote.kinds.base import Refusals
from services.engine.remote.kinds.completions import CompletionsKind

REFUSALS = Refusals("vLLM")
MAX_PENALTY = 2


class VLLM(CompletionsKind):
    name = "vllm"
    owned_by = "vllm"
    health = "/health"
    reads_options = False

    def refuse(self, sampling: SamplingParams) -> None:
        REFUSALS.check(
            frequency_penalty=abs(sampling.frequency_penalty) > MAX_PENALTY,
            presence_penalty=abs(sampling.presence_penalty) > MAX_PENALTY,
        )
