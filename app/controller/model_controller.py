"""GET /v1/models and /v1/models/{id}."""

from typing import Annotated

from fastapi import Query

from app.common.dependencies import Catalogue
from app.common.json_body import JsonRoute
from app.common.router import TwinRouter
from schemas.status_schema import Model
from schemas.status_schema import Models as ModelList

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
