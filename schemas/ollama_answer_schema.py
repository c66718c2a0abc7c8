"""Ollama's answers, as they go over the wire. Fields that are None are not sent."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from schemas.answer_schema import Omitted
from schemas.chat_answer_schema import Token

NANOSECONDS = 1_000_000_000  # a second of a duration


class AnswerFunction(BaseModel):
    name: str
    arguments: dict[str, Any]
    index: int


class AnswerToolCall(BaseModel):
    id: str
    function: AnswerFunction


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    thinking: Omitted[str] = None
    tool_calls: Omitted[list[AnswerToolCall]] = None


class AnswerMetrics(BaseModel):
    """With the last line of an answer. Durations in nanoseconds."""

    done_reason: Omitted[Literal["stop", "length", "load"]] = None
    total_duration: Omitted[int] = None
    load_duration: Omitted[int] = Field(None, description="until the model could be asked")
    prompt_eval_count: Omitted[int] = None
    prompt_eval_duration: Omitted[int] = None
    eval_count: Omitted[int] = None
    eval_duration: Omitted[int] = None


class Line(AnswerMetrics):
    model: str
    created_at: str
    done: bool
    logprobs: Omitted[list[Token]] = None


class ChatLine(Line):
    message: AnswerMessage


class GenerateLine(Line):
    response: str
    thinking: Omitted[str] = None


class OllamaEmbeddings(BaseModel):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    prompt_eval_count: int


class OllamaEmbedding(BaseModel):
    embedding: list[float]


class Details(BaseModel):
    """What a model's files say of it; this server does not look there."""

    parent_model: str = ""
    format: str = ""
    family: str = ""
    families: list[str] = []
    parameter_size: str = ""
    quantization_level: str = ""


class ListedModel(BaseModel):
    name: str
    model: str
    modified_at: str
    size: int = 0
    digest: str = Field(description="of the name; weights are not read for it")
    details: Details = Details()


class Tags(BaseModel):
    models: list[ListedModel]


class RunningModel(BaseModel):
    name: str
    model: str
    digest: str
    details: Details = Details()
    context_length: Omitted[int] = None


class Processes(BaseModel):
    models: list[RunningModel]


class ShownModel(BaseModel):
    modified_at: str
    details: Details = Details()
    model_info: dict[str, Any]
    capabilities: list[str]


class PullLine(BaseModel):
    """Of a model that is pulled; the last line, and the answer that is not streamed, is `success`."""

    status: str
    digest: Omitted[str] = Field(None, description="of the name")
    total: Omitted[int] = Field(None, description="bytes")
    completed: Omitted[int] = None


class Version(BaseModel):
    version: str
