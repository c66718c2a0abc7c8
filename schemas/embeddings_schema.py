"""POST /v1/embeddings on the wire: request and answer."""

from typing import Literal

from pydantic import BaseModel, Field, StrictInt

from schemas.input_schema import Input, Truncation, inputs_of, is_list
from schemas.request_schema import Request


class EmbeddingRequest(Request):
    """OpenAI's, and vLLM's `truncate_prompt_tokens`: longer inputs are cut to so many tokens instead of refused."""

    input: Input = Field([""])
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = Field(None, ge=1)
    user: str | None = None
    truncate_prompt_tokens: Truncation | None = None  # -1: the model's length
    prompt_name: str | None = Field(None, max_length=200, description="of the model's prompts, put in front of texts")
    input_type: str | None = Field(
        None, max_length=200, description="'query' or 'document': the prompt that the model has for it, if it has one"
    )

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        return inputs_of(self.input)

    def name_of(self, index: int) -> str:
        """What an error about one input calls it."""
        return f"input.{index}" if is_list(self.input) else "input"


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str  # str: base64 of little-endian float32


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
