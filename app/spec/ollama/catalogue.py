"""Ollama's routes about models and the server: tags, show, ps, version."""

import hashlib
from datetime import UTC, datetime
from typing import Any

from app.spec import ModelCard, Server
from app.spec.ollama.request import model
from schemas.ollama_answer_schema import ListedModel, Processes, RunningModel, ShownModel, Tags, Version
from schemas.ollama_schema import ShowRequest

OLLAMA_VERSION = "0.33.0"  # whose routes these are: clients check it before using newer ones


class Catalogue:
    def __init__(self, server: Server) -> None:
        self._server = server

    async def tags(self) -> Tags:
        return Tags(models=[_listed(card) for card in self._server.models()])

    async def processes(self) -> Processes:
        return Processes(models=[self._loaded(card) for card in self._server.models() if card.loaded])

    async def show(self, body: ShowRequest) -> ShownModel:
        card = self._server.model(model(body.model or body.name))
        known = self._server.abilities(card)
        length = known.context_length
        info: dict[str, Any] = {"general.basename": card.id, "general.architecture": "unknown"}
        info |= {"unknown.context_length": length} if length else {}
        return ShownModel(modified_at=_time(card.created), model_info=info, capabilities=list(known.capabilities))

    async def version(self) -> Version:
        return Version(version=OLLAMA_VERSION)

    def _loaded(self, card: ModelCard) -> RunningModel:
        length = self._server.abilities(card).context_length
        return RunningModel(name=card.id, model=card.id, digest=_digest(card), context_length=length)


def _listed(card: ModelCard) -> ListedModel:
    return ListedModel(name=card.id, model=card.id, modified_at=_time(card.created), digest=_digest(card))


def _digest(card: ModelCard) -> str:
    return hashlib.sha256(card.id.encode()).hexdigest()


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
