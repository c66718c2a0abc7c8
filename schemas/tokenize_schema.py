"""Texts and chats as token ids, and back: vLLM's /tokenize and /detokenize, and OpenAI's count of a request's input."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from schemas.answer_schema import Omitted
from schemas.chat_schema import ChatMessage
from schemas.generation_schema import TokenId
from schemas.request_schema import Request
from schemas.tool_schema import AnyTool

MAX_TOKENS = 500_000


class TokenizeRequest(Request):
    """Of a text, or of a chat as its model's template writes it."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: bool = Field(True, description="those that the tokenizer puts around a prompt")
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field({}, max_length=64)
    tools: list[AnyTool] = Field([], max_length=128)
    return_token_strs: bool = False


class Tokens(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: Omitted[list[str]] = None


class DetokenizeRequest(Request):
    model: str | None = None
    tokens: list[TokenId] = Field(max_length=MAX_TOKENS)


class Detokenized(BaseModel):
    prompt: str


class TokenizerInfo(BaseModel):
    """What a client needs to write a model's prompts by itself."""

    model: str
    tokenizer_class: str
    max_model_len: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    additional_special_tokens: list[str]
    chat_template: str | dict[str, str] | None


class InputTokens(BaseModel):
    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int
