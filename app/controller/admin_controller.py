"""GET /admin/status and POST /admin/reload, for admin keys. The page's view of administration reads the first."""

from fastapi import Depends

from app.common.auth import require_admin
from app.common.dependencies import Reloader, Status
from app.common.json_body import JsonRoute
from app.common.router import Router
from schemas.reload_schema import Reload
from schemas.status_schema import ServiceStatus

router = Router(tags=["administration"], route_class=JsonRoute, dependencies=[Depends(require_admin)])


@router.get("/admin/status")
async def status(service: Status) -> ServiceStatus:
    """Of the process that answers; other replicas have their own."""
    return service.status()


@router.post("/admin/reload")
async def reload(service: Reloader) -> Reload:
    """Applies changed keys and models of `.env` and `parley.toml`; other settings need a restart, and are named."""
    return await service.reload()
