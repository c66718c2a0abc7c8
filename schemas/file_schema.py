"""Files in OpenAI's shapes."""

from typing import Literal, TypeVar

from pydantic import BaseModel

from schemas.request_schema import Request, fault

R = TypeVar("R", bound=Request)

MAX_FILENAME = 256
FILE_SOURCES = ("file_id", "file_data", "file_url")  # of a file in a message

Purpose = Literal["batch", "user_data", "vision"]
StoredPurpose = Literal["batch", "batch_output", "user_data", "vision"]


class File(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: StoredPurpose
    status: Literal["processed"] = "processed"


class DeletedFile(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


def require_one(source: R, *names: str) -> R:
    """Raises unless the object has exactly one of the fields."""
    given = [name for name in names if getattr(source, name) is not None]
    if not given:
        raise fault(f"needs one of {', '.join(names)}", names[0])
    if len(given) > 1:
        raise fault(f"goes without {given[0]}", given[1])
    return source
