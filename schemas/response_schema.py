"""OpenAI's request for a response, as it goes over the wire."""

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, StringConstraints

from schemas.chat_schema import ConversationId
from schemas.generation_schema import TIERS, CacheSalt, MetadataKey, ServiceTier
from schemas.ignored_keys import Kept, kept
from schemas.item_schema import Includable, Item
from schemas.request_schema import Hints, Request
from schemas.response_tool_schema import ResponseTool, ResponseToolChoice, validate_by_type
from schemas.sampling_schema import MODELS, Temperature, TopP

Hint = Annotated[str, StringConstraints(max_length=64)]


class PlainFormat(Request):
    type: Literal["text", "json_object"]


class SchemaFormat(Request):
    """As it was given: `schema` is a name that pydantic's models have themselves."""

    model_config = ConfigDict(populate_by_name=True)

    type: Literal["json_schema"]
    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


def _format(value: object) -> Kept:
    models: dict[object, type[Request]] = {"text": PlainFormat, "json_object": PlainFormat, "json_schema": SchemaFormat}
    if not isinstance(value, dict) or value.get("type") not in ("text", "json_object", "json_schema"):
        raise ValueError("its type must be 'text', 'json_object' or 'json_schema'")
    return kept(models[value["type"]].model_validate(value), extra=False, exclude_none=True, by_alias=True)


class TextConfig(Request):
    HINTS: ClassVar[Hints] = {"verbosity": ("medium",)}

    format: Annotated[Kept, PlainValidator(_format, json_schema_input_type=dict[str, Any])] = Field(
        default_factory=lambda: Kept(type="text")
    )
    verbosity: Literal["low", "medium", "high"] | None = None


SummaryMode = Literal["auto", "concise", "detailed"]
SUMMARY_MODES: tuple[SummaryMode, ...] = get_args(SummaryMode)


class ResponseReasoning(Request):
    HINTS: ClassVar[Hints] = {
        "summary": (*SUMMARY_MODES, "none"),
        "generate_summary": (*SUMMARY_MODES, "none"),
        "context": ("auto",),
        "mode": ("standard",),
    }

    effort: str | None = None
    summary: Hint | None = None
    generate_summary: Hint | None = None
    context: Hint | None = None
    mode: Hint | None = None

    @property
    def summary_mode(self) -> SummaryMode | None:
        """The newer name counts first."""
        mode = self.summary or self.generate_summary
        return next((each for each in SUMMARY_MODES if each == mode), None)


class ResponseStreamOptions(Request):
    HINTS: ClassVar[Hints] = {"include_obfuscation": (False,)}

    include_obfuscation: bool = False


def _input(value: object) -> object:
    return [{"type": "message", "role": "user", "content": value}] if isinstance(value, str) else value


MIN_THRESHOLD = 1_000  # tokens: fewer hold no conversation
CONTEXT_MANAGEMENT = "context_management"

Label = Annotated[str, StringConstraints(max_length=512)]
MetadataText = Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\x00]*$")]  # PostgreSQL looks for no other
ResponseId = Annotated[str, StringConstraints(min_length=1, max_length=128)]
InputItems = Annotated[list[Item], BeforeValidator(_input), Field(max_length=10_000)]


class CompactionEdit(Request):
    type: Literal["compaction"]
    compact_threshold: int | None = Field(None, ge=MIN_THRESHOLD, lt=2**31)


def _edit(value: object) -> Kept:
    return validate_by_type(value, {"compaction": CompactionEdit})


ContextEdit = Annotated[Kept, PlainValidator(_edit, json_schema_input_type=dict[str, Any])]


class ConversationRequest(Request):
    """Output text."""

    HINTS: ClassVar[Hints] = {
        "client_metadata": (),
        "image": (),
        "prompt_cache_options": ({}, {"mode": "implicit"}),
        "prompt_cache_retention": ("in_memory",),
        "service_tier": TIERS,
    }

    input: InputItems = Field([], description="one user's text, or items")
    model: str | None = None
    instructions: str | None = None
    conversation: ConversationId | None = None
    parent_item: str | None = Field(
        None,
        max_length=128,
        description="the item of the conversation to go on from; empty: before the first one; default: the newest",
    )
    previous_response_id: ResponseId | None = None


class CompactRequest(ConversationRequest):
    """What is to be compacted."""

    prompt_cache_key: Label | None = None
    service_tier: ServiceTier = "auto"
    cache_salt: CacheSalt | None = Field(None, description="prompts are reused only where this is the same")


class ResponseInput(ConversationRequest):
    """What the prompt of a response is made of."""

    HINTS: ClassVar[Hints] = {
        **ConversationRequest.HINTS,
        "access_programs": (),
        "context_management": ([],),
        "moderation": (),
        "personality": (),
    }

    tools: list[ResponseTool] = Field([], max_length=128)
    tool_choice: ResponseToolChoice = "auto"
    parallel_tool_calls: bool = True
    text: TextConfig = Field(default_factory=TextConfig)
    reasoning: ResponseReasoning | None = None
    truncation: Literal["auto", "disabled"] = "disabled"


class ResponseRequest(ResponseInput):
    """What of the contract is served; `UNSUPPORTED` in `services/chat/request/responses.py` names the rest."""

    HINTS: ClassVar[Hints] = {
        name: values for name, values in ResponseInput.HINTS.items() if name != CONTEXT_MANAGEMENT
    }

    context_management: list[ContextEdit] = Field(
        [],
        max_length=16,
        description="compaction: of a prompt of more tokens than `compact_threshold`, or that leaves no room to answer",
    )
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    store: bool = True
    background: bool = False
    include: list[Hint] = Field(
        [], max_length=64, description="what no answer here has is left aside, and named `include.…`"
    )
    temperature: Temperature | None = Field(None, description=MODELS)
    top_p: TopP | None = Field(None, description=MODELS)
    top_logprobs: int = Field(0, ge=0, le=20)
    max_output_tokens: int | None = Field(None, ge=1)
    max_tool_calls: int | None = Field(None, ge=1, description="of built-in tools, of which there are none here")
    metadata: dict[MetadataKey, MetadataText] = Field({}, max_length=16)
    service_tier: ServiceTier = "auto"
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    cache_salt: CacheSalt | None = Field(None, description="prompts are reused only where this is the same")
    continue_final_message: bool = Field(False, description="goes on with the last message, if that is an answer")


class Retrieval(BaseModel):
    """The query of a response that is read once more. Lists come with brackets from the official client."""

    include: list[Includable] = Field([], max_length=16, alias="include[]")
    stream: bool = False
    starting_after: int | None = Field(None, ge=0, lt=2**31, description="goes with stream")
    include_obfuscation: bool = False
