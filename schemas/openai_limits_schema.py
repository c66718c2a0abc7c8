"""What OpenAI limits in requests for text. It binds OpenAI's routes: other protocols have other limits, or none."""

from typing import Annotated

from pydantic import Field

from schemas.generation_schema import Generation, StopSequences

Penalty = Annotated[float, Field(ge=-2, le=2)]


class OpenAILimits(Generation):
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    stop: Annotated[StopSequences, Field(max_length=4)] = Field([])
