"""What a spec may ask of the service."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from typing import Generic, TypeVar

from fastapi import Request

from app.common.dependencies import Services
from app.common.ignored import Ignored
from app.common.sse import Framing, Stream
from schemas.chat_schema import ChatCompletionRequest
from schemas.completion_schema import CompletionRequest
from schemas.embeddings_schema import EmbeddingRequest
from schemas.pull_schema import PullProgress
from services.catalogue_service import Abilities
from services.chat.events import Event, Reply, reply_of
from services.chat.request.refusals import ReportIgnored, report_nothing
from services.chat.sealed import Seal
from services.models.config import ModelCard

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741


class Output(Generic[T]):
    """What the model says to one request: its events as they come, or all of them as one Reply."""

    def __init__(self, request: T, owner: str, run: AsyncGenerator[Event, None]) -> None:
        self.request = request
        self.owner = owner
        self._run = run

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._run

    async def whole(self) -> Reply:
        return await reply_of(self._run)

    async def aclose(self) -> None:
        """Takes the answer out of the batch if it is not at its end."""
        await self._run.aclose()


class Server:
    """Admission, drain, disconnects, metrics and limits are the service's own business in all of this."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def run(
        self,
        request: ChatCompletionRequest | CompletionRequest,
        owner: str,
        report_ignored: ReportIgnored = report_nothing,
    ) -> AsyncGenerator[Event, None]:
        """A Head, then what is said; close it to end it early. Its first step raises what refuses the request.

        `report_ignored` gets the names of the parameters that the model has no use for.
        """
        if isinstance(request, CompletionRequest):
            return self._services.completions.run(request, owner)
        return self._services.chat.run(request, owner, report_ignored=report_ignored)

    async def count(
        self, chat: ChatCompletionRequest, owner: str, report_ignored: ReportIgnored = report_nothing
    ) -> int:
        """Tokens of the prompt that this chat would have."""
        return len(await self._services.chat.prompt_of(chat, owner, report_ignored))

    async def embed(self, request: EmbeddingRequest, owner: str) -> bytes:
        """OpenAI's answer, as JSON."""
        return await self._services.embeddings.create(request, owner)

    def models(self) -> list[ModelCard]:
        return self._services.models.cards()

    def model(self, name: str | None) -> ModelCard:
        """Raises ModelNotFound."""
        return self._services.models.card(name or "default")

    def abilities(self, card: ModelCard) -> Abilities:
        return self._services.catalogue.abilities(card)

    async def load(self, name: str | None) -> None:
        await self._services.models.get_model(name)

    def pull(self, name: str) -> AsyncGenerator[PullProgress, None]:
        """A model of a hub. Like `delete` for administrators only: its route depends on `require_admin`."""
        return self._services.pulls.pull(name)

    async def delete(self, name: str) -> None:
        await self._services.pulls.delete(name)

    def owner(self, request: Request) -> str:
        """Whom the answer is for: the same for the same API key."""
        owner: str = request.state.caller.owner
        return owner

    async def seal(self, owner: str) -> Seal:
        """For texts that the owner's client keeps and cannot read."""
        return await self._services.secrets.seal(owner)

    def ignored(self, names: Iterable[str]) -> Ignored:
        """What is left aside; its `headers` name it. Raises InvalidRequest for it if the server is strict."""
        return self._services.unknown_keys.of(names)

    async def stream(
        self, items: AsyncGenerator[I, None], framing: Framing[I], headers: Mapping[str, str] | None = None
    ) -> Stream:
        """Errors before the first item are raised here, and get a status of their own."""
        return await self._services.sse.respond(items, framing, headers)
