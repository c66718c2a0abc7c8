"""Uploads of files in parts, in OpenAI's shapes, under /v1/uploads."""

from typing import Annotated

from fastapi import File as FilePart
from fastapi import Request, Response, UploadFile

from app.common.dependencies import Caller, UnknownKeys, Uploads
from app.common.json_body import JsonRoute
from app.common.router import TwinRouter
from schemas.ignored_keys import ignored_keys
from schemas.upload_schema import NewUpload, Upload, UploadCompletion, UploadPart

router = TwinRouter(tags=["files"], route_class=JsonRoute)


@router.post("/uploads")
async def create_upload(
    body: NewUpload, response: Response, uploads: Uploads, caller: Caller, unknown: UnknownKeys
) -> Upload:
    response.headers.update(unknown.header(ignored_keys(body)))
    return await uploads.create(body, caller.owner)


@router.post("/uploads/{upload_id}/parts")
async def add_upload_part(
    upload_id: str,
    request: Request,
    response: Response,
    uploads: Uploads,
    caller: Caller,
    unknown: UnknownKeys,
    data: Annotated[UploadFile, FilePart()],
) -> UploadPart:
    response.headers.update(unknown.header(name for name in await request.form() if name != "data"))
    return await uploads.add_part(upload_id, caller.owner, data.file, data.size or 0)


@router.post("/uploads/{upload_id}/complete")
async def complete_upload(
    upload_id: str,
    body: UploadCompletion,
    response: Response,
    uploads: Uploads,
    caller: Caller,
    unknown: UnknownKeys,
) -> Upload:
    response.headers.update(unknown.header(ignored_keys(body)))
    return await uploads.complete(upload_id, caller.owner, body)


@router.post("/uploads/{upload_id}/cancel")
async def cancel_upload(upload_id: str, uploads: Uploads, caller: Caller) -> Upload:
    return await uploads.cancel(upload_id, caller.owner)
