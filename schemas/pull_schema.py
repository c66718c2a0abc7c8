"""POST /v1/models/{id}/pull and DELETE /v1/models/{id}."""

from typing import Literal

from pydantic import BaseModel, Field

from schemas.answer_schema import Omitted
from schemas.request_schema import Request


class PullModel(Request):
    stream: bool = Field(False, description="progress as server-sent events; else one answer at the end")
    revision: str | None = Field(
        None, min_length=1, max_length=200, pattern=r"^\w[\w./-]*$", description="a branch, a tag or a commit"
    )


class PullProgress(BaseModel):
    id: str
    object: Literal["model.pull"] = "model.pull"
    status: Literal["downloading", "completed"]
    completed: Omitted[int] = Field(None, description="bytes of weights that are on the server's disk")
    total: Omitted[int] = Field(None, description="bytes of weights")


class ModelDeleted(BaseModel):
    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True
