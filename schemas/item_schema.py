"""Items, which responses and conversations are made of, as they go over the wire."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, TypeAdapter

from schemas.file_schema import MAX_FILENAME
from schemas.ignored_keys import Kept
from schemas.request_schema import Hints, Request
from schemas.response_tool_schema import ResponseTool, validate_by_type
from schemas.tool_schema import FunctionName

MAX_FOUND = 128
Status = Literal["in_progress", "completed", "incomplete"]

# What of items a client can ask for besides them.
Includable = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]


class TextContent(Request):
    type: str
    text: str


class OutputTextContent(TextContent):
    annotations: list[dict[str, Any]] = Field([])
    logprobs: list[dict[str, Any]] = Field([])


class RefusalContent(Request):
    type: str
    refusal: str


class ImageContent(Request):
    type: str
    image_url: str | None = None
    file_id: str | None = None
    detail: Literal["auto", "low", "high", "original"] = "auto"


class FileContent(Request):
    HINTS: ClassVar[Hints] = {"detail": ("auto",)}

    type: str
    file_id: str | None = None
    file_data: str | None = Field(None, description="base64, or a data URL")
    file_url: str | None = None
    filename: str | None = Field(None, max_length=MAX_FILENAME)


PARTS: dict[object, type[Request]] = {
    "input_text": TextContent,
    "text": TextContent,
    "output_text": OutputTextContent,
    "summary_text": TextContent,
    "reasoning_text": TextContent,
    "refusal": RefusalContent,
    "input_image": ImageContent,
    "input_file": FileContent,
}


def _part(value: object) -> Kept:
    return validate_by_type(value, PARTS)


ItemContentPart = Annotated[Kept, PlainValidator(_part, json_schema_input_type=dict[str, Any])]
PART_LIST: TypeAdapter[list[Kept]] = TypeAdapter(list[ItemContentPart])
CallId = Annotated[str, Field(min_length=1, max_length=128)]
ItemId = Annotated[str, Field(pattern=r"^[^\x00]{1,128}$")]


class MessageItem(Request):
    type: Literal["message"]
    id: ItemId | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: list[ItemContentPart]
    status: Status | None = None


class FunctionCallItem(Request):
    type: Literal["function_call"]
    id: ItemId | None = None
    call_id: CallId
    name: FunctionName
    namespace: FunctionName | None = None
    arguments: str
    status: Status | None = None


def _output(value: object) -> str | list[Kept]:
    if not isinstance(value, str | list):
        raise ValueError("must be a string or a list of parts")
    return value if isinstance(value, str) else PART_LIST.validate_python(value)


class FunctionCallOutputItem(Request):
    type: Literal["function_call_output"]
    id: ItemId | None = None
    call_id: CallId
    output: Annotated[str | list[Kept], PlainValidator(_output, json_schema_input_type=str | list[dict[str, Any]])]
    status: Status | None = None


class ReasoningItem(Request):
    type: Literal["reasoning"]
    id: ItemId | None = None
    summary: list[ItemContentPart] = Field([])
    content: list[ItemContentPart] = Field([])
    encrypted_content: str | None = None
    status: Status | None = None


class CustomToolCallItem(Request):
    type: Literal["custom_tool_call"]
    id: ItemId | None = None
    call_id: CallId
    name: FunctionName
    namespace: FunctionName | None = None
    input: str
    status: Status | None = None


class CustomToolCallOutputItem(FunctionCallOutputItem):
    type: Literal["custom_tool_call_output"]  # type: ignore[assignment]  # what it has is the same


class ToolSearchCallItem(Request):
    """Of a search that the client runs itself."""

    type: Literal["tool_search_call"]
    id: ItemId | None = None
    call_id: CallId
    execution: Literal["client"]
    arguments: dict[str, Any]
    status: Status | None = None


class ToolSearchOutputItem(Request):
    type: Literal["tool_search_output"]
    id: ItemId | None = None
    call_id: CallId
    execution: Literal["client"]
    tools: list[ResponseTool] = Field(max_length=MAX_FOUND)
    status: Status | None = None


class CompactionItem(Request):
    """A summary of what precedes it, which only the server that wrote it can read."""

    type: Literal["compaction"]
    id: ItemId | None = None
    encrypted_content: str


class CompactionTriggerItem(Request):
    """Asks for a compaction of the items before it. It is never stored."""

    type: Literal["compaction_trigger"]
    id: ItemId | None = None


class ForeignItem(Request):
    """Of a tool that is not served here. All of it is kept, and what it says is put into words for the model."""

    type: str
    id: ItemId | None = None
    call_id: CallId | None = None
    name: FunctionName | None = None

    def left_aside(self) -> Iterator[str]:
        yield from ()


# What is taken and says nothing to a model here: it is left aside, and named by its type.
UNREAD = {
    *("additional_tools", "configuration_update", "image_generation_call"),
    *("mcp_approval_request", "mcp_approval_response", "mcp_list_tools"),
    "web_search_call",
}
FOREIGN = {
    *("apply_patch_call", "apply_patch_call_output", "code_interpreter_call", "computer_call", "computer_call_output"),
    *("file_search_call", "local_shell_call", "local_shell_call_output", "mcp_call", "program", "program_output"),
    *("shell_call", "shell_call_output"),
}


class ItemReference(Request):
    type: Literal["item_reference"]
    id: ItemId


ITEMS: dict[object, type[Request]] = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionCallOutputItem,
    "reasoning": ReasoningItem,
    "item_reference": ItemReference,
    "custom_tool_call": CustomToolCallItem,
    "custom_tool_call_output": CustomToolCallOutputItem,
    "compaction": CompactionItem,
    "compaction_trigger": CompactionTriggerItem,
    **dict.fromkeys(FOREIGN, ForeignItem),
}
# Other names of `compaction`, in clients' stored sessions.
COMPACTIONS = ("compaction_summary", "context_compaction")
COMPACTED = "compacted"  # key of the plain content of an opened compaction; clients may not set it
SEARCHES: dict[object, type[Request]] = {
    "tool_search_call": ToolSearchCallItem,
    "tool_search_output": ToolSearchOutputItem,
}


def _item(value: object) -> Kept:
    """In one form, however it was written: with its type, and a message's content as a list of parts."""
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    if value.get("type") is None:
        value = value | {"type": "message" if "role" in value else "item_reference"}
    if value["type"] == "message" and isinstance(value.get("content"), str):
        kind = "output_text" if value.get("role") == "assistant" else "input_text"
        value = value | {"content": [{"type": kind, "text": value["content"]}]}
    if value["type"] in COMPACTIONS:
        value = value | {"type": "compaction"}
    if value["type"] == "compaction":
        value = {key: each for key, each in value.items() if key != COMPACTED}
    return validate_by_type(value, ITEMS | SEARCHES if value.get("execution") == "client" else ITEMS)


Item = Annotated[Kept, PlainValidator(_item, json_schema_input_type=dict[str, Any])]
