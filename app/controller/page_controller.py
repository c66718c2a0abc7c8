"""The chat page at /, and the API's documents at /docs and /redoc: files, which ask for /openapi.json with the key.

Their policies allow what is of their own origin only."""

from pathlib import Path

from fastapi.responses import FileResponse

from app.common.router import Router

STATIC = Path(__file__).parent.parent / "static"
OWN = "default-src 'none'; script-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
TRUSTED_TYPES = "require-trusted-types-for 'script'; trusted-types 'none'"  # no HTML from strings
POLICIES = {
    "index.html": f"{OWN}style-src 'self'; img-src data:; font-src 'self'; {TRUSTED_TYPES}",
    "docs.html": f"{OWN}style-src 'self'; img-src 'self' data:",
    "redoc.html": f"{OWN}style-src 'self' 'unsafe-inline'; img-src 'self' data:; worker-src blob:",
}

router = Router(include_in_schema=False)


@router.get("/")
async def page() -> FileResponse:
    return _file("index.html")


@router.get("/docs")
async def docs() -> FileResponse:
    return _file("docs.html")


@router.get("/redoc")
async def redoc() -> FileResponse:
    return _file("redoc.html")


def _file(name: str) -> FileResponse:
    return FileResponse(STATIC / name, headers={"Content-Security-Policy": POLICIES[name]})
