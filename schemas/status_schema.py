"""What the service says of itself."""

from typing import Literal

from pydantic import BaseModel, Field

from schemas.answer_schema import Omitted
from schemas.codex_schema import CodexModel
from schemas.sampling_schema import EffectiveSampling


class RunningStatus(BaseModel):
    status: Literal["running"] = "running"
    llm_serving_url: str
    model_name: str
    max_new_tokens: int | None  # None: the model's length, known once it is loaded
    device: str
    do_sample: bool = True  # unless the temperature is 0
    sampling: EffectiveSampling = Field(description="where a request names nothing")
    system_prompt: str | None


class NotStarted(BaseModel):
    status: Literal["not started"] = "not started"
    message: str = "You need to start the service first."
    reason: Literal["draining", "loading", "failed"]  # failed: the model could not be loaded; the server's log says why


class Health(BaseModel):
    status: Literal["ok", "loading", "draining", "failed", "stalled"] = "ok"


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "parley"
    sampling: Omitted[EffectiveSampling] = Field(None, description="of a chat model, where a request names nothing")
    max_model_len: Omitted[int] = Field(None, description="tokens of prompt and answer, once the model is loaded")
    context_length: Omitted[int] = Field(None, description="the same, as other clients call it")
    input_modalities: Omitted[list[str]] = Field(None, description="once the model is loaded, as the next two")
    output_modalities: Omitted[list[str]] = None
    capabilities: Omitted[list[str]] = Field(None, description="as Ollama names them: completion, tools, thinking, …")


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
    models: list[CodexModel] = Field(description="the chat models, as Codex reads them")
