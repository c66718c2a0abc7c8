"""Ollama's requests, as they go over the wire."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from schemas.generation_schema import Penalty, StopSequences, listed
from schemas.request_schema import Hints, Request
from schemas.sampling_schema import MODELS, AnyTemperature, AnyTopP, MinP, RepetitionPenalty


class OllamaRequest(Request):
    model: str | None = None


class Options(OllamaRequest):
    """Where a request says nothing the model's own values hold, as those of a Modelfile would."""

    HINTS: ClassVar[Hints] = {"tfs_z": (1,), "typical_p": (1,)}

    num_predict: int = Field(-1, description="0 and less: up to the model's length")
    temperature: AnyTemperature | None = Field(None, description=MODELS)
    top_k: int | None = Field(None, ge=0, description=f"0: off; {MODELS}")
    top_p: AnyTopP | None = Field(None, description=MODELS)
    min_p: MinP | None = Field(None, description=MODELS)
    seed: int = Field(-1, ge=-1, lt=2**63, description="-1: another one each time")
    stop: StopSequences = Field([])
    repeat_penalty: RepetitionPenalty | None = Field(None, description=MODELS)
    repeat_last_n: int | None = Field(None, ge=-1, description="0: no penalty; any other: one over all of the text")
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    tfs_z: float = Field(1, description="as in Ollama's own engine, which has none of it")
    typical_p: float = Field(1, description="as in Ollama's own engine, which has none of it")
    mirostat: Literal[0] = 0


def _format(value: object) -> object:
    if value in ("", "json") or isinstance(value, dict):
        return value
    raise ValueError("must be 'json' or a JSON schema")


def _think(value: object) -> object:
    if isinstance(value, bool) or value in ("low", "medium", "high"):
        return value
    raise ValueError("must be true, false, 'low', 'medium' or 'high'")


class OllamaGenerationRequest(OllamaRequest):
    stream: bool = True
    options: Options = Options()
    format: Annotated[str | dict[str, Any], BeforeValidator(_format)] = ""
    think: Annotated[bool | Literal["low", "medium", "high"] | None, BeforeValidator(_think)] = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)


class OllamaCalledFunction(Request):
    name: str
    arguments: dict[str, Any] = Field({})
    index: int | None = None
    description: str | None = None


class OllamaToolCall(Request):
    id: str | None = None
    type: Literal["function"] = "function"
    function: OllamaCalledFunction


class OllamaMessage(Request):
    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str | None = None
    images: list[str] = Field([], description="in base64")
    tool_calls: list[OllamaToolCall] = Field([])
    tool_name: str | None = Field(None, description="of a tool's result: the first call of it that has none yet")
    tool_call_id: str | None = None


class OllamaFunction(Request):
    name: str
    description: str | None = None
    parameters: dict[str, Any] = Field({})


class OllamaTool(Request):
    type: Literal["function"] = "function"
    function: OllamaFunction


class ChatRequest(OllamaGenerationRequest):
    messages: list[OllamaMessage] = Field([], description="none: the model is loaded, nothing is generated")
    tools: list[OllamaTool] = Field([])


class GenerateRequest(OllamaGenerationRequest):
    prompt: str = Field("", description="none: the model is loaded, nothing is generated")
    system: str | None = None
    images: list[str] = Field([], description="in base64")
    raw: Literal[False] = Field(False, description="prompts without a template: see /v1/completions")
    suffix: str = Field("", description="text behind the answer, for models that were trained to fill in")
    template: Literal[""] = ""


class EmbedRequest(OllamaRequest):
    input: Annotated[list[str], BeforeValidator(listed, json_schema_input_type=str | list[str])]
    truncate: bool = Field(True, description="to the model's length, instead of a refusal")
    dimensions: int | None = Field(None, ge=1)
    options: dict[str, Any] = Field({}, description="none of them is of use here")


class EmbeddingsRequest(OllamaRequest):
    prompt: str
    options: dict[str, Any] = Field({}, description="none of them is of use here")


class ShowRequest(OllamaRequest):
    name: str | None = Field(None, description="an older name of `model`")


class PullRequest(OllamaRequest):
    name: str | None = Field(None, description="an older name of `model`")
    stream: bool = True
    insecure: bool = False  # how a hub is reached is the operator's to say

    HINTS: ClassVar[Hints] = {"insecure": (False,)}


class DeleteRequest(OllamaRequest):
    name: str | None = Field(None, description="an older name of `model`")
