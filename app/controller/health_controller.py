"""Probes and /metrics."""

from fastapi import Response

from app.common.dependencies import Drain, MetricsExport, Models
from app.common.router import Router
from schemas.status_schema import Health

router = Router(tags=["health"])


@router.get("/health")
@router.get("/health/live")
async def live() -> Health:
    """The process answers."""
    return Health()


@router.get("/health/ready", responses={503: {"model": Health}})
async def ready(response: Response, models: Models, drain: Drain) -> Health:
    """Whether new requests should be sent here. A model that loads at its first use does not count as missing."""
    troubles = {
        "draining": drain.has_begun,
        "loading": models.is_loading(),
        "failed": models.has_failed(),
        "stalled": models.is_stalled(),
    }
    state = Health.model_validate({"status": next((name for name, there in troubles.items() if there), "ok")})
    response.status_code = 200 if state.status == "ok" else 503
    return state


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(measured: MetricsExport) -> Response:
    return Response(measured.render(), media_type="text/plain; version=0.0.4; charset=utf-8")
