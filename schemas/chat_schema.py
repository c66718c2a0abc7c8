"""OpenAI's chat completion request, as it goes over the wire."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainValidator, StringConstraints, TypeAdapter, model_validator

from schemas.generation_schema import TIERS, Generation, ServiceTier
from schemas.ignored_keys import Kept, kept
from schemas.message_forms import as_function_call, with_tool_calls
from schemas.request_schema import Hints, Request, Unserved, fault


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
    url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"


class ImagePart(Request):
    type: Literal["image_url"]
    image_url: ImageUrl
    prompt_cache_breakpoint: CacheBreakpoint | None = Field(None, exclude=True)


PARTS: dict[str, type[Request]] = {
    "text": TextPart,
    "refusal": RefusalPart,
    "image_url": ImagePart,
}
UNSUPPORTED_PARTS = ("input_audio", "file")


def _part(part: object) -> Kept:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in UNSUPPORTED_PARTS:
        raise ValueError(f"'{kind}' is not supported by this server")
    if not isinstance(kind, str) or kind not in PARTS:
        raise ValueError(f"its type must be one of {', '.join(PARTS)}")
    return kept(PARTS[kind].model_validate(part), extra=False, exclude_unset=True)


Part = Annotated[Kept, PlainValidator(_part, json_schema_input_type=dict[str, Any])]
CONTENT: TypeAdapter[list[Kept]] = TypeAdapter(list[Part])


def _content(value: object) -> str | list[Kept]:
    """Decides on the shape first: one short error, not one for each alternative."""
    if not isinstance(value, str | list):
        raise ValueError("must be a string or a list of parts")
    return value if isinstance(value, str) else CONTENT.validate_python(value)


def _has_image(content: str | list[Kept] | None) -> bool:
    return isinstance(content, list) and any(part["type"] == "image_url" for part in content)


Content = Annotated[str | list[Kept], PlainValidator(_content, json_schema_input_type=str | list[dict[str, Any]])]


FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]

Description = str  # of any length: agents describe their tools on pages


class CalledFunction(Request):
    name: FunctionName
    arguments: str = Field(description="JSON, as text")


class MessageToolCall(Request):
    id: str = Field(min_length=1, max_length=128)
    type: Literal["function"] = "function"
    function: CalledFunction

    @model_validator(mode="before")
    @classmethod
    def _in_one_form(cls, data: Any) -> Any:
        return as_function_call(data)


class ChatMessage(Request):
    """A message without a role is the user's. An assistant's may have nothing but thoughts in it, or nothing at all."""

    HINTS: ClassVar[Hints] = {"annotations": ([],)}

    role: Literal["developer", "system", "user", "assistant", "tool"] = "user"
    content: Content | None = None
    name: str | None = Field(None, max_length=64)
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = Field(None, description="another name of `reasoning_content`")
    annotations: list[Any] = Field([], description="an answer that comes back may have this")
    tool_calls: list[MessageToolCall] = Field([], max_length=128)
    tool_call_id: str | None = Field(None, max_length=128)

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
        if self.role not in ("user", "tool") and _has_image(self.content):
            raise fault("images are the user's or a tool's", "content")
        if self.tool_calls and self.role != "assistant":
            raise fault("tool_calls are the assistant's", "tool_calls")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise fault("a tool's message has one, and no other", "tool_call_id")
        return self

    def _without_content(self) -> str | None:
        if self.role != "assistant" and self.refusal is None and not self.tool_calls:
            raise fault("content is required", "content")
        return None if self.refusal is not None or self.tool_calls else ""


class Function(Request):
    name: FunctionName
    description: Description | None = None
    parameters: dict[str, Any] = Field({}, description="a JSON schema; none: no arguments")
    strict: bool = False


class Tool(Request):
    type: Literal["function"]
    function: Function


def _tool(value: object) -> Tool | Unserved:
    if isinstance(value, Tool | Unserved):
        return value
    kind = value.get("type") if isinstance(value, dict) else None
    model = Tool if kind is None or kind == "function" else Unserved
    return model.model_validate(value)


AnyTool = Annotated[Tool | Unserved, BeforeValidator(_tool, json_schema_input_type=Tool)]


class ChosenFunction(Request):
    name: FunctionName


class ChosenTool(Request):
    type: Literal["function"]
    function: ChosenFunction


def _chosen(value: object) -> ChosenTool | Unserved:
    if isinstance(value, ChosenTool | Unserved):
        return value
    kind = value.get("type") if isinstance(value, dict) else None
    model = ChosenTool if kind is None or kind == "function" else Unserved
    return model.model_validate(value)


AnyChosen = Annotated[ChosenTool | Unserved, BeforeValidator(_chosen, json_schema_input_type=ChosenTool)]


class ToolSet(Request):
    mode: Literal["auto", "required"]
    tools: list[AnyChosen] = Field(min_length=1, max_length=128)


class AllowedTools(Request):
    type: Literal["allowed_tools"]
    allowed_tools: ToolSet


def _tool_choice(value: object) -> object:
    """Decides on the shape first: one short error, not one for each alternative."""
    if isinstance(value, str):
        if value not in ("none", "auto", "required"):
            raise ValueError("must be 'none', 'auto', 'required' or an object")
        return value
    kinds: dict[object, type[ChosenTool] | type[AllowedTools]] = {
        "function": ChosenTool,
        "allowed_tools": AllowedTools,
    }
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in kinds:
        raise ValueError("its type must be 'function' or 'allowed_tools'")
    return kinds[kind].model_validate(value)


ToolChoice = Annotated[Literal["none", "auto", "required"] | ChosenTool | AllowedTools, BeforeValidator(_tool_choice)]


def _conversation_id(value: object) -> object:
    if not isinstance(value, dict):
        return value
    if not isinstance(value.get("id"), str):
        raise ValueError("an object here needs an 'id'")
    return value["id"]


ConversationId = Annotated[str, BeforeValidator(_conversation_id)]


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
ServedTier = Literal["default", "flex", "priority"]


class ChatCompletionRequest(Generation):
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
        None, max_length=128, description="the item of the conversation to go on from; none: the newest"
    )
