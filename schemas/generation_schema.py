"""What every request for text has in common: how it is to be sampled, and how it is to be sent."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, StringConstraints

from schemas.input_schema import Truncation
from schemas.request_schema import Request
from schemas.sampling_schema import MODELS, MODELS_TOP_K, AnyTemperature, AnyTopP, MinP, RepetitionPenalty, TopK
from schemas.structure_schema import Choices, ResponseFormat, Schema, Source, StructuredOutputs


class StreamOptions(Request):
    include_usage: bool = False
    include_obfuscation: bool = Field(False, description="makes chunks equally long with random letters")
    continuous_usage_stats: bool = False


def listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _bias(value: object) -> object:
    if not isinstance(value, dict):
        return value
    if not all(TOKEN_ID.fullmatch(str(key)) for key in value):
        raise ValueError("its keys must be token ids")
    return {int(key): bias for key, bias in value.items()}


TOKEN_ID = re.compile(r"[0-9]{1,9}")
Bias = Annotated[float, Field(ge=-100, le=100)]


def _metadata_value(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("must be a string or a number")
    if isinstance(value, str) and len(value) > 512:
        raise ValueError("must have at most 512 characters")
    if isinstance(value, str) and "\0" in value:
        raise ValueError("must not contain the NUL character")
    if isinstance(value, float) and not -(2**63) < value < 2**64:
        # a larger integer becomes a float when JSON is read, and would come back as another number
        raise ValueError("must be a number of at most 64 bits: send a larger one as a string")
    return value


StopSequence = Annotated[str, StringConstraints(min_length=1, max_length=512)]
StopSequences = Annotated[list[StopSequence], BeforeValidator(listed), Field(max_length=128)]
MetadataKey = Annotated[str, StringConstraints(max_length=64, pattern=r"^[^\x00]*$")]
MetadataValue = Annotated[str | int | float, BeforeValidator(_metadata_value)]
Metadata = dict[MetadataKey, MetadataValue]
CacheSalt = Annotated[str, StringConstraints(min_length=1, max_length=512)]
TokenId = Annotated[int, Field(ge=0)]
Penalty = Annotated[float, Field(ge=-1000, le=1000)]

TIERS = ("auto", "default", "flex", "priority", "fast", "ultrafast")  # any other is a hint, and left aside
ServiceTier = Annotated[str, StringConstraints(max_length=64)]


class GenerationRequest(Request):
    model: str | None = None
    temperature: AnyTemperature | None = Field(None, description=MODELS)
    top_p: AnyTopP | None = Field(None, description=MODELS)
    top_k: TopK | None = Field(None, description=MODELS_TOP_K)
    min_p: MinP | None = Field(None, description=MODELS)
    repetition_penalty: RepetitionPenalty | None = Field(None, description=MODELS)
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    logit_bias: Annotated[dict[int, Bias], BeforeValidator(_bias)] = Field({}, max_length=1024)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopSequences = Field([])
    stop_token_ids: list[TokenId] = Field([], max_length=1024)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int | None = Field(None, ge=0, description="also inside metadata, as a number")
    n: int = Field(1, ge=1, le=16, description="with a seed, each choice after the first has the next one")
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = Field(None, description="as vLLM's clients say it")
    guided_json: Schema | None = Field(None, description="a schema, also as text")
    guided_regex: Source | None = None
    guided_choice: Choices | None = Field(None, description="the answer is one of these")
    guided_grammar: Source | None = Field(None, description="Lark or GBNF")
    truncate_prompt_tokens: Truncation | None = Field(
        None, description="the last so many of a longer prompt are read; -1: as many as leave room for the answer"
    )
    return_token_ids: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    priority: int = Field(0, ge=-(2**31), lt=2**31, description="Lower ones run first, among the same key's")
    cache_salt: CacheSalt | None = Field(None, description="prompts are reused only where this is the same")
    user: str | None = Field(None, description="kept nowhere and reported to nobody")
    metadata: Metadata = Field({}, max_length=16)
