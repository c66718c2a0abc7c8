"""GET /v1/models and /v1/models/{id}; for administrators, POST /v1/models/{id}/load, /unload and /pull, and DELETE."""

from typing import Annotated

from fastapi import Query, Request, Response

from app.common.dependencies import Admin, Catalogue, Pulls, Sse, UnknownKeys
from app.common.disconnect import while_connected
from app.common.json_body import JsonRoute
from app.common.openapi import EVENTS
from app.common.router import TwinRouter
from schemas.ignored_keys import ignored_keys
from schemas.pull_schema import ModelDeleted, PullModel, PullProgress
from schemas.status_schema import Model
from schemas.status_schema import Models as ModelList

WHOLE = PullModel()

router = TwinRouter(tags=["models"], route_class=JsonRoute)


@router.get("/models")
async def list_models(
    catalogue: Catalogue,
    client_version: Annotated[str | None, Query(description="Codex's own; nothing depends on it")] = None,
) -> ModelList:
    return await catalogue.models()


# ids of hub models have a slash: percent-encoded by some clients, raw by others
@router.get("/models/{model:path}")
async def retrieve_model(model: str, catalogue: Catalogue) -> Model:
    return await catalogue.model(model)


@router.post("/models/{model:path}/load", description="Answers once the model is loaded.")
async def load_model(model: str, catalogue: Catalogue, admin: Admin) -> Model:
    return await catalogue.load(model)


@router.post("/models/{model:path}/unload", description="The next request loads it again; 409 while it answers.")
async def unload_model(model: str, catalogue: Catalogue, admin: Admin) -> Model:
    return await catalogue.unload(model)


@router.post(
    "/models/{model:path}/pull",
    response_model=PullProgress,
    responses=EVENTS,
    description="From a hub, if the settings allow it: `owner/name`, or `owner/name:Q4_K_M` for one of its GGUF files. "
    "A download that was cut off goes on, and requests for the same model share one.",
)
async def pull_model(
    model: str, request: Request, pulls: Pulls, sse: Sse, admin: Admin, unknown: UnknownKeys, body: PullModel = WHOLE
) -> Response:
    headers = unknown.header(ignored_keys(body))
    if body.stream:
        return await sse.openai(pulls.pull(model, body.revision), headers)
    found = await while_connected(request, pulls.whole(model, body.revision))
    return Response(found.model_dump_json(), headers=headers, media_type="application/json")


@router.delete("/models/{model:path}", description="A model that was pulled: from the disk, too.")
async def delete_model(model: str, pulls: Pulls, admin: Admin) -> ModelDeleted:
    await pulls.delete(model)
    return ModelDeleted(id=model)
