"""GET /v1/models and the same without /v1."""

from fastapi import APIRouter

from app.common.dependencies import Models
from schemas.status_schema import Model
from schemas.status_schema import Models as ModelList

router = APIRouter(tags=["models"])


@router.get("/v1/models")
@router.get("/models", include_in_schema=False)
async def list_models(models: Models) -> ModelList:
    return ModelList(data=[Model(id=card.id, created=card.created) for card in models.cards()])


# ids of hub models have a slash: percent-encoded by some clients, raw by others
@router.get("/v1/models/{model:path}")
@router.get("/models/{model:path}", include_in_schema=False)
async def retrieve_model(model: str, models: Models) -> Model:
    return Model(id=model, created=models.card(model).created)
