"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, for administrators."""

from fastapi import Depends, Response
from fastapi.responses import PlainTextResponse

from app.common.auth import require_admin
from app.common.dependencies import Adapters, UnknownKeys
from app.common.json_body import JsonRoute
from app.common.router import TwinRouter
from schemas.adapter_schema import LoadAdapter, UnloadAdapter
from schemas.ignored_keys import ignored_keys

router = TwinRouter(
    tags=["models"],
    route_class=JsonRoute,
    dependencies=[Depends(require_admin)],
    default_response_class=PlainTextResponse,
)


@router.post("/load_lora_adapter")
async def load_lora_adapter(body: LoadAdapter, response: Response, adapters: Adapters, unknown: UnknownKeys) -> str:
    response.headers.update(unknown.header(ignored_keys(body)))
    return await adapters.load(body)


@router.post("/unload_lora_adapter")
async def unload_lora_adapter(body: UnloadAdapter, response: Response, adapters: Adapters, unknown: UnknownKeys) -> str:
    response.headers.update(unknown.header(ignored_keys(body)))
    return await adapters.unload(body)
