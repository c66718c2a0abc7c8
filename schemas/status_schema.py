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


class LoadingProgress(BaseModel):
    stage: Literal["fetching", "waiting", "reading", "quantizing", "compiling", "packing", "checking", "warming_up"]
    done: Omitted[int] = Field(None, description="fetching: bytes; reading: tensors")
    total: Omitted[int] = Field(None, description="where it is known")


class ModelStatus(BaseModel):
    value: Literal["unloaded", "loading", "loaded", "failed"] = Field(
        description="failed: the last load; the next request tries again"
    )
    progress: Omitted[LoadingProgress] = Field(None, description="of the load, while the value is loading")


class ModelMemory(BaseModel):
    weights: int = Field(description="bytes")
    quantization: str = Field(description="of the files: bf16, Q4_K_M, …; ? if they do not say")
    fits_in: Literal["RAM", "GPU memory"] | None = Field(description="null: it does not fit into what is free now")
    context_length: int | None = Field(description="tokens that fit beside the weights; null: not known")


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "parley"
    status: ModelStatus
    parent: Omitted[str] = Field(None, description="of a LoRA adapter: the model that it changes")
    sampling: Omitted[EffectiveSampling] = Field(None, description="of a chat model, where a request names nothing")
    max_model_len: Omitted[int] = Field(None, description="tokens of prompt and answer, once the model is loaded")
    context_length: Omitted[int] = Field(None, description="the same, as other clients call it")
    input_modalities: Omitted[list[str]] = Field(None, description="once the model is loaded, as the next two")
    output_modalities: Omitted[list[str]] = None
    memory: Omitted[ModelMemory] = Field(None, description="of a model whose files are on the server's disk")
    capabilities: Omitted[list[str]] = Field(None, description="as Ollama names them: completion, tools, thinking, …")


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
    models: list[CodexModel] = Field(description="the chat models, as Codex reads them")


class ModelActivity(BaseModel):
    id: str
    object: Literal["model.activity"] = "model.activity"
    kind: Literal["chat", "embedding", "reranker"]
    status: ModelStatus
    device: Omitted[str] = Field(None, description="once the model is loaded, as the next two")
    dtype: Omitted[str] = None
    max_model_len: Omitted[int] = None
    running: int = Field(description="sequences in the batch")
    waiting: int = Field(description="requests in the queue")
    cache_used: int = Field(description="tokens in the KV cache")
    cache_size: int = Field(description="tokens that it holds; 0: there is none")
    tokens_per_second: float = Field(description="sampled, over the last 5 whole seconds")
    is_stalled: bool = Field(description="it has been at one step for too long")


class ServiceStatus(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelActivity]
