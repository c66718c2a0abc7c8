"""What OpenAI limits in requests for text. It binds OpenAI's routes: other protocols have other limits, or none."""

from typing import Annotated

from pydantic import Field

from schemas.generation_schema import GenerationRequest, StopSequences
from schemas.sampling_schema import MODELS, Temperature, TopP

OpenAIPenalty = Annotated[float, Field(ge=-2, le=2)]


class OpenAILimits(GenerationRequest):
    temperature: Temperature | None = Field(None, description=MODELS)
    top_p: TopP | None = Field(None, description=MODELS)
    frequency_penalty: OpenAIPenalty = 0.0
    presence_penalty: OpenAIPenalty = 0.0
    stop: Annotated[StopSequences, Field(max_length=4)] = Field([])
