"""POST /predict: one prompt in, the answer out, for programs that speak no chat protocol."""

from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints, model_validator

from schemas.generation_schema import StopSequences
from schemas.request_schema import Request, fault
from schemas.sampling_schema import MODELS, MODELS_TOP_K, Temperature, TopK, TopP

PromptText = Annotated[str, StringConstraints(min_length=1)]


class Prediction(Request):
    """`input`, or as some call it `prompt`."""

    input: PromptText | None = Field(None, description="What the user says; `prompt` is another name for it")
    prompt: PromptText | None = None
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: Temperature | None = Field(None, description=MODELS)
    top_p: TopP | None = Field(None, description=MODELS)
    top_k: TopK | None = Field(None, description=MODELS_TOP_K)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopSequences = Field([], description="one string or several")
    stream: bool = Field(False, description="Answer in lines of JSON, each with the next piece as its `output`")

    @model_validator(mode="after")
    def _has_one(self) -> "Prediction":
        if (self.input is None) == (self.prompt is None):
            raise fault("one of 'input' and 'prompt' is needed", "input")
        return self


class Predicted(BaseModel):
    output: str
