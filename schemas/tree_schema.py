"""A conversation with its branches: siblings are versions of each other. An extension of the Conversations API."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from schemas.page_schema import Page
from schemas.response_answer_schema import ResponseError, ResponseUsage


class TreeNode(BaseModel):
    object: Literal["conversation.node"] = "conversation.node"
    item: dict[str, Any]
    parent_item: str | None = Field(description="the item it comes after; none: it is a first one")
    answer_id: str | None = Field(description="of the answer it was given to, or is a part of")
    is_output: bool
    created_at: int


class TreeAnswer(BaseModel):
    id: str
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    model: str
    parent_item: str | None = Field(description="the item it answers")
    finish_reason: str | None
    usage: ResponseUsage | None
    error: ResponseError | None
    created_at: float
    completed_at: float | None


class TreePage(Page[TreeNode]):
    """Oldest first."""

    answers: list[TreeAnswer] = Field(description="those that the items of this page belong to")
