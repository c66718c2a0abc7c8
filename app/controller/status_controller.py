"""GET /chat: what is served, and how."""

from fastapi import Request

from app.common.dependencies import Drain, Info, Models
from app.common.json_body import JsonRoute
from app.common.router import Router
from schemas.sampling_schema import EffectiveSampling
from schemas.status_schema import NotStarted, RunningStatus

router = Router(tags=["chat"], route_class=JsonRoute)


@router.get("/chat")
async def status(request: Request, models: Models, drain: Drain, server: Info) -> RunningStatus | NotStarted:
    if drain.has_begun:
        return NotStarted(reason="draining")
    if models.is_loading():
        return NotStarted(reason="loading")
    if models.has_failed():
        return NotStarted(reason="failed")
    model = models.default()
    engine = models.engine(model.name)
    sampling = EffectiveSampling(**(await models.sampling(model.name)).given)
    return RunningStatus(
        llm_serving_url=str(request.base_url),
        model_name=model.name,
        max_new_tokens=server.max_new_tokens or (engine.max_length if engine else None),
        device=engine.device if engine else server.device,
        do_sample=sampling.temperature > 0,
        sampling=sampling,
        system_prompt=server.system_prompt,
    )
