"""The blocks that contents of Anthropic's messages are made of.

What earlier answers were made of comes back, also from another server: blocks of tools that Anthropic runs, thoughts
that only it can read, texts with citations. All of them are taken, whatever becomes of them.
"""

from typing import Annotated, Any, ClassVar, Literal, Union, get_args

from pydantic import BeforeValidator, Field, PlainValidator

from schemas.request_schema import Hints, Request, fault

ToolId = Annotated[str, Field(min_length=1, max_length=128)]


def by_type(*kinds: type[Request]) -> PlainValidator:
    """The one whose type it says. Errors name the place in the request alone: pydantic's own unions add the type."""
    known = {name: kind for kind in kinds for name in get_args(kind.model_fields["type"].annotation)}

    def choose(value: object) -> Request:
        kind = value.get("type") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in known:
            raise fault(f"its type must be one of {', '.join(map(repr, known))}")
        return known[kind].model_validate(value)

    return PlainValidator(choose, json_schema_input_type=Union[kinds])  # noqa: UP007


def blocks(value: object) -> object:
    """A string stands for one block of text."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Block(Request):
    """`cache_control` is taken everywhere: whatever prompts have in common is computed once anyway."""

    cache_control: dict[str, Any] | None = None


class TextBlock(Block):
    HINTS: ClassVar[Hints] = {"citations": ([],)}

    type: Literal["text"]
    text: str
    citations: list[Any] = Field([], description="where a text was found that is part of it already")


TextBlocks = Annotated[list[TextBlock], BeforeValidator(blocks, json_schema_input_type=str | list[TextBlock])]


class Base64Source(Request):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str = Field(min_length=1)


class UrlSource(Request):
    type: Literal["url"]
    url: str = Field(min_length=1)


class FileSource(Request):
    """One that was uploaded to `/v1/files`."""

    type: Literal["file"]
    file_id: str


class ImageBlock(Block):
    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource | FileSource, by_type(Base64Source, UrlSource, FileSource)]


class TextSource(Request):
    type: Literal["text"]
    media_type: Literal["text/plain"] = "text/plain"
    data: str


TextOrImageBlock = Annotated[TextBlock | ImageBlock, by_type(TextBlock, ImageBlock)]


class ContentSource(Request):
    type: Literal["content"]
    content: Annotated[
        list[TextOrImageBlock], BeforeValidator(blocks, json_schema_input_type=str | list[TextOrImageBlock])
    ]


class PdfSource(Request):
    """What it is, its first bytes say."""

    type: Literal["base64"]
    media_type: str = "application/pdf"
    data: str


DocumentSource = Annotated[
    TextSource | ContentSource | PdfSource | UrlSource | FileSource,
    by_type(TextSource, ContentSource, PdfSource, UrlSource, FileSource),
]


class DocumentBlock(Block):
    HINTS: ClassVar[Hints] = {"citations": ({"enabled": False},)}

    type: Literal["document"]
    source: DocumentSource
    title: str | None = None
    context: str | None = None
    citations: dict[str, Any] | None = None


class SearchResultBlock(Block):
    HINTS: ClassVar[Hints] = {"citations": ({"enabled": False},)}

    type: Literal["search_result"]
    source: str
    title: str
    content: list[TextBlock]
    citations: dict[str, Any] | None = None


class ThinkingBlock(Block):
    """Its text is read whoever signed it."""

    type: Literal["thinking"]
    thinking: str = ""
    signature: str = Field("", description="where there is no text: the thought, if it was sealed here")


class RedactedThinkingBlock(Block):
    """Named and left aside, if it was not sealed here."""

    type: Literal["redacted_thinking"]
    data: str = ""


class CompactionBlock(Block):
    """A summary of the conversation before it."""

    type: Literal["compaction"]
    content: str | None = None


class ToolUseBlock(Block):
    """`caller`: who has asked for it, the model or a program of the model's."""

    type: Literal["tool_use", "server_tool_use", "mcp_tool_use"]
    id: ToolId
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")
    input: dict[str, Any]
    caller: dict[str, Any] | None = None
    server_name: str | None = None


class ToolReferenceBlock(Block):
    """What a client's search for tools finds."""

    type: Literal["tool_reference"]
    tool_name: str


ToolResultContent = Annotated[
    TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock,
    by_type(TextBlock, ImageBlock, DocumentBlock, SearchResultBlock, ToolReferenceBlock),
]


class ToolResultBlock(Block):
    type: Literal["tool_result"]
    tool_use_id: str
    content: Annotated[
        list[ToolResultContent], BeforeValidator(blocks, json_schema_input_type=str | list[ToolResultContent])
    ] = Field([])
    is_error: bool = False


class ServerResultBlock(Block):
    """Of a tool that the server ran which gave the earlier answer."""

    type: Literal[
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "advisor_tool_result",
        "mcp_tool_result",
    ]
    tool_use_id: ToolId
    content: Any = Field("", description="in any form: it is put into words")
    is_error: bool = False
    caller: dict[str, Any] | None = None


class ContainerUploadBlock(Block):
    """Refused by its name: no programs are run here."""

    type: Literal["container_upload"]
    file_id: str


USER_BLOCKS = (TextBlock, ImageBlock, DocumentBlock, SearchResultBlock, ToolResultBlock, ContainerUploadBlock)
ASSISTANT_BLOCKS = (TextBlock, ThinkingBlock, RedactedThinkingBlock, CompactionBlock, ToolUseBlock, ServerResultBlock)
BLOCKS: dict[str, tuple[type[Block], ...]] = {
    "user": USER_BLOCKS,
    "assistant": ASSISTANT_BLOCKS,
    "system": (TextBlock,),
}

ContentBlockParam = Annotated[
    TextBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | CompactionBlock
    | ToolUseBlock
    | ToolResultBlock
    | ServerResultBlock
    | ContainerUploadBlock,
    by_type(*dict.fromkeys([*USER_BLOCKS, *ASSISTANT_BLOCKS])),
]
