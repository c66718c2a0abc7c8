"""Uploads of files in parts, in OpenAI's shapes."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from schemas.batch_schema import OutputExpiry
from schemas.file_schema import File, Purpose
from schemas.request_schema import Request

PartId = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class NewUpload(Request):
    bytes: int = Field(ge=1, le=2**53)
    filename: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00]*$")]
    mime_type: Annotated[str, StringConstraints(min_length=1, max_length=256)] = Field(
        description="contents are sent back as application/octet-stream, whatever it is"
    )
    purpose: Purpose
    expires_after: OutputExpiry | None = Field(None, description="of the file")


class UploadCompletion(Request):
    part_ids: list[PartId] = Field(min_length=1, max_length=10_000)
    md5: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{32}$")] | None = None


class Upload(BaseModel):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Purpose
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: File | None = None


class UploadPart(BaseModel):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
