"""OpenAI's legacy completion request and answer; a streamed answer's chunks have the same shape as a plain one."""

from functools import partial
from typing import Annotated, Literal

from pydantic import BaseModel, Field, PlainValidator

from schemas.chat_answer_schema import CompletionUsage
from schemas.generation_schema import Metadata
from schemas.input_schema import Shape, check_input, inputs_of, is_list
from schemas.openai_limits_schema import OpenAILimits

MAX_PROMPTS = 128

CompletionPrompt = Annotated[
    Shape, PlainValidator(partial(check_input, max_inputs=MAX_PROMPTS), json_schema_input_type=Shape)
]


class CompletionRequest(OpenAILimits):
    """What of the contract is served; `UNSUPPORTED` in `services/chat/request/completion.py` names the rest."""

    prompt: CompletionPrompt
    suffix: str | None = Field(None, description="text behind the answer, for models that were trained to fill in")
    max_tokens: int = Field(16, ge=0, description="0 goes with echo only: nothing is added to the prompt")
    best_of: int | None = Field(None, ge=1, le=16, description="so many are sampled, and the n likeliest returned")
    echo: bool = Field(False, description="begins with the prompt")
    logprobs: int | None = Field(
        None, ge=0, le=20, description="alternatives reported with each token; OpenAI has up to 5"
    )
    return_tokens_as_token_ids: bool = Field(False, description="tokens in logprobs are written `token_id:` and id")
    metadata: Metadata = Field({}, max_length=16, description="its min_tokens is read; nothing of it is kept")
    add_special_tokens: bool = Field(True, description="those that the tokenizer puts around a text")

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        return inputs_of(self.prompt)

    def name_of(self, index: int) -> str:
        """What an error about one prompt calls it."""
        return f"prompt.{index}" if is_list(self.prompt) else "prompt"


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    token_ids: list[int] = []
    arrival_time: float | None = Field(None, description="of a chunk: seconds since the request arrived")


class Completion(BaseModel):
    """Fields that were never set are not sent."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    obfuscation: str | None = None
    usage: CompletionUsage | None = None
