"""How tokens are sampled: the values that requests, settings and models may give."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Temperature = Annotated[float, Field(ge=0, le=2)]  # OpenAI's limits, as for top_p
TopP = Annotated[float, Field(gt=0, le=1)]
AnyTemperature = Annotated[float, Field(ge=0, le=1000)]
AnyTopP = Annotated[float, Field(ge=0, le=1, description="0: the likeliest token")]
TopK = Annotated[int, Field(ge=-1)]
MinP = Annotated[float, Field(ge=0, le=1)]
RepetitionPenalty = Annotated[float, Field(ge=0.01, le=100)]

MODELS = "default: the model's"  # of what requests say nothing about
MODELS_TOP_K = f"0 and -1: off; {MODELS}"


class SamplingSettings(BaseModel):
    """What holds instead of what a model's authors recommend; without any of it what OpenAI's API says."""

    model_config = ConfigDict(extra="forbid")

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None


class EffectiveSampling(BaseModel):
    """What holds where a request names nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = Field(0, description="0: off")
    min_p: float = 0.0
    repetition_penalty: float = 1.0
