"""The Conversations API, as it goes over the wire."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from schemas.answer_schema import Omitted
from schemas.generation_schema import Metadata
from schemas.item_schema import Item
from schemas.page_schema import Page
from schemas.request_schema import Request

# Every type that a conversation can have, whether a model here can read it or not.
TYPES = {
    *("message", "reasoning", "compaction", "program", "program_output", "additional_tools", "configuration_update"),
    *("function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"),
    *("file_search_call", "web_search_call", "image_generation_call", "code_interpreter_call"),
    *("computer_call", "computer_call_output", "tool_search_call", "tool_search_output"),
    *("local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output"),
    *("apply_patch_call", "apply_patch_call_output"),
    *("mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "mcp_call"),
}


def _is_of_a_conversation(item: dict[str, Any]) -> dict[str, Any]:
    if item["type"] not in TYPES:
        raise ValueError("its type is none of those that a conversation can have")
    return item


NewItem = Annotated[Item, AfterValidator(_is_of_a_conversation)]
NewItems = Annotated[list[NewItem], Field(max_length=20)]
Title = Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\x00]*$")]


class NewConversation(Request):
    items: NewItems = Field([])
    metadata: Metadata = Field({}, max_length=16)
    title: Title | None = None


class ConversationUpdate(Request):
    metadata: Metadata | None = Field(None, max_length=16)
    title: Title | None = None


class AddedItems(Request):
    items: NewItems = Field(min_length=1)


class Conversation(BaseModel):
    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int
    metadata: Metadata
    title: Omitted[str] = None


class DeletedConversation(BaseModel):
    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: Literal[True] = True


ItemPage = Page[dict[str, Any]]


class SearchResult(BaseModel):
    """An item in which something was found."""

    object: Literal["conversation.search_result"] = "conversation.search_result"
    conversation_id: str | None = Field(description="none: it belongs to an answer that was stored by itself")
    answer_id: str | None = Field(description="of which it is a part")
    item: dict[str, Any]
    snippet: str
    created_at: int
