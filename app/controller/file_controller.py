"""Files in OpenAI's shapes, under /v1/files."""

from typing import Annotated, Literal

from fastapi import File as FilePart
from fastapi import Form, Query, Request, Response, UploadFile

from app.common.dependencies import Caller, Files, UnknownKeys
from app.common.file_content import FileContent
from app.common.json_body import JsonRoute
from app.common.router import TwinRouter
from schemas.file_schema import DeletedFile, File, Purpose
from schemas.page_schema import Order, Page
from services.file_service import FileQuery, NewFile

router = TwinRouter(tags=["files"], route_class=JsonRoute)

FIELDS = {"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"}


@router.post("/files")
async def upload_file(
    request: Request,
    response: Response,
    files: Files,
    caller: Caller,
    unknown: UnknownKeys,
    file: Annotated[UploadFile, FilePart()],
    purpose: Annotated[Purpose, Form()],
    anchor: Annotated[Literal["created_at"] | None, Form(alias="expires_after[anchor]")] = None,
    seconds: Annotated[int | None, Form(alias="expires_after[seconds]", ge=3600, le=2_592_000)] = None,
) -> File:
    response.headers.update(unknown.header(name for name in await request.form() if name not in FIELDS))
    new = NewFile(
        filename=file.filename or "",
        purpose=purpose,
        source=file.file,
        bytes=file.size or 0,
        expires_after_s=seconds,
    )
    return await files.create(caller.owner, new)


@router.get("/files")
async def list_files(
    files: Files,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Order = "desc",
    after: Annotated[str | None, Query(max_length=128)] = None,
    purpose: Annotated[str | None, Query(max_length=64)] = None,
) -> Page[File]:
    return await files.page(caller.owner, FileQuery(limit, order, after, purpose))


@router.get("/files/{file_id}")
async def retrieve_file(file_id: str, files: Files, caller: Caller) -> File:
    return await files.get(file_id, caller.owner)


@router.delete("/files/{file_id}")
async def delete_file(file_id: str, files: Files, caller: Caller) -> DeletedFile:
    return await files.delete(file_id, caller.owner)


@router.get("/files/{file_id}/content", response_class=FileContent, status_code=200)
async def retrieve_file_content(request: Request, file_id: str, files: Files, caller: Caller) -> FileContent:
    return FileContent(request, await files.content(file_id, caller.owner))
