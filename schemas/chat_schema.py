"""OpenAI's chat completion request, as it goes over the wire."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainValidator, PrivateAttr, TypeAdapter, model_validator

from schemas.file_schema import FILE_SOURCES, MAX_FILENAME, require_one
from schemas.generation_schema import TIERS, GenerationRequest, ServiceTier
from schemas.ignored_keys import Kept, kept
from schemas.message_forms import with_tool_calls
from schemas.request_schema import Hints, Request, fault
from schemas.tool_schema import AnyTool, AnyToolCall, ToolChoice


class CacheBreakpoint(Request):
    """A hint that is not needed: equal beginnings are found."""

    mode: Literal["explicit"]
    ttl: Literal["30m", "12h"] | None = None


class TextPart(Request):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: CacheBreakpoint | None = Field(None, exclude=True)


class RefusalPart(Request):
    type: Literal["refusal"]
    refusal: str


class ImageUrl(Request):
    url: str | None = None
    file_id: str | None = Field(None, description="an uploaded image, in place of a URL")
    detail: Literal["auto", "low", "high", "original"] = "auto"

    @model_validator(mode="after")
    def _is_one(self) -> "ImageUrl":
        return require_one(self, "url", "file_id")


class ImagePart(Request):
    type: Literal["image_url"]
    image_url: ImageUrl
    prompt_cache_breakpoint: CacheBreakpoint | None = Field(None, exclude=True)


class FileSource(Request):
    file_id: str | None = None
    file_data: str | None = Field(None, description="base64, or a data URL")
    file_url: str | None = None
    filename: str | None = Field(None, max_length=MAX_FILENAME)

    @model_validator(mode="after")
    def _is_one(self) -> "FileSource":
        return require_one(self, *FILE_SOURCES)


class FilePart(Request):
    type: Literal["file"]
    file: FileSource
    prompt_cache_breakpoint: CacheBreakpoint | None = Field(None, exclude=True)


PARTS: dict[str, type[Request]] = {
    "text": TextPart,
    "refusal": RefusalPart,
    "image_url": ImagePart,
    "file": FilePart,
}
UNSUPPORTED_PARTS = ("input_audio",)


def _part(part: object) -> Kept:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in UNSUPPORTED_PARTS:
        raise ValueError(f"'{kind}' is not supported by this server")
    if not isinstance(kind, str) or kind not in PARTS:
        raise ValueError(f"its type must be one of {', '.join(PARTS)}")
    return kept(PARTS[kind].model_validate(part), extra=False, exclude_unset=True)


ContentPart = Annotated[Kept, PlainValidator(_part, json_schema_input_type=dict[str, Any])]
CONTENT: TypeAdapter[list[Kept]] = TypeAdapter(list[ContentPart])


def _content(value: object) -> str | list[Kept]:
    """Decides on the shape first: one short error, not one for each alternative."""
    if not isinstance(value, str | list):
        raise ValueError("must be a string or a list of parts")
    return value if isinstance(value, str) else CONTENT.validate_python(value)


def _has(kind: str, content: str | list[Kept] | None) -> bool:
    return isinstance(content, list) and any(part["type"] == kind for part in content)


MessageContent = Annotated[
    str | list[Kept], PlainValidator(_content, json_schema_input_type=str | list[dict[str, Any]])
]


class ChatMessage(Request):
    """A message without a role is the user's. An assistant's may have nothing but thoughts in it, or nothing at all."""

    HINTS: ClassVar[Hints] = {"annotations": ([],)}

    role: Literal["developer", "system", "user", "assistant", "tool"] = "user"
    content: MessageContent | None = None
    name: str | None = Field(None, max_length=64)
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = Field(None, description="another name of `reasoning_content`")
    annotations: list[Any] = Field([], description="an answer that comes back may have this")
    tool_calls: list[AnyToolCall] = Field([], max_length=128)
    tool_call_id: str | None = Field(None, max_length=128)

    _found: list[dict[str, Any]] = PrivateAttr(default_factory=list)

    @property
    def found_tools(self) -> list[dict[str, Any]]:
        """As a response's request has them: a search of the client's brought them, and they can be called now."""
        return self._found

    def bring(self, tools: list[dict[str, Any]]) -> None:
        self._found = tools

    @model_validator(mode="before")
    @classmethod
    def _in_one_form(cls, data: Any) -> Any:
        return with_tool_calls(data)

    @model_validator(mode="after")
    def _says_something(self) -> "ChatMessage":
        if self.reasoning and not self.reasoning_content:
            self.reasoning_content = self.reasoning
        if not self.content and not isinstance(self.content, str):
            self.content = self._without_content()
        if self.role not in ("user", "tool") and _has("image_url", self.content):
            raise fault("images are the user's or a tool's", "content")
        if self.role == "assistant" and _has("file", self.content):
            raise fault("files are not the assistant's", "content")
        if self.tool_calls and self.role != "assistant":
            raise fault("tool_calls are the assistant's", "tool_calls")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise fault("a tool's message has one, and no other", "tool_call_id")
        return self

    def _without_content(self) -> str | None:
        if self.role != "assistant" and self.refusal is None and not self.tool_calls:
            raise fault("content is required", "content")
        return None if self.refusal is not None or self.tool_calls else ""


def _conversation_id(value: object) -> object:
    if not isinstance(value, dict):
        return value
    if not isinstance(value.get("id"), str):
        raise ValueError("an object here needs an 'id'")
    return value["id"]


ConversationId = Annotated[str, BeforeValidator(_conversation_id)]


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
ServedTier = Literal["default", "flex", "priority"]


class ChatCompletionRequest(GenerationRequest):
    """A chat completion, whichever protocol asks for it: what one of them limits is limited where its requests come in.

    What of OpenAI's contract is not served is named by `UNSUPPORTED` in `services/chat/request/prompt.py`.
    """

    HINTS: ClassVar[Hints] = {
        "moderation": (),
        "prediction": (),
        "prompt_cache_options": ({}, {"mode": "implicit"}),
        "prompt_cache_retention": ("in_memory",),
        "service_tier": TIERS,
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20, description="goes with logprobs")
    echo: bool = Field(False, description="begins with the last message, if that is the assistant's")
    add_generation_prompt: bool | None = Field(None, description="true, unless the final message is continued")
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field({}, max_length=64)
    service_tier: ServiceTier | None = Field(
        None, description="flex: after the others; priority, fast and ultrafast: before them"
    )
    prompt_cache_key: str | None = Field(None, description="a hint that is not needed: equal beginnings are found")
    safety_identifier: str | None = Field(None, max_length=128, description="kept nowhere and reported to nobody")
    tools: list[AnyTool] = Field([], max_length=1024)
    tool_choice: ToolChoice | None = Field(None, description="none without tools, else auto")
    parallel_tool_calls: bool = True
    reasoning_effort: Effort | None = Field(None, description="none: no thinking, if the model can do without")
    enable_thinking: bool | None = None
    thinking_token_budget: int | None = Field(None, ge=0, description="after so many tokens thinking is ended")
    store: bool = Field(False, description="keep it, to be found again by its id")
    conversation: ConversationId | None = Field(
        None, description="id, or an object with the id, of the conversation to continue and to add to"
    )
    parent_item: str | None = Field(
        None,
        max_length=128,
        description="the item of the conversation to go on from; empty: before the first one; default: the newest",
    )
