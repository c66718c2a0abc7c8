"""The chat page at /."""

from pathlib import Path

from fastapi.responses import FileResponse

from app.common.router import Router

STATIC = Path(__file__).parent.parent / "static"

router = Router(include_in_schema=False)


@router.get("/")
async def page() -> FileResponse:
    return FileResponse(STATIC / "index.html")
