"""The requests of batches: answered by the services that the routes call, in the words of these routes."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import uuid4

import orjson
from pydantic import BaseModel, ValidationError

from app.common.errors import Problem, problem, validation_problem
from app.common.ignored import UnknownKeys
from app.common.json_body import LARGE, check_shape
from app.common.log import request_id
from schemas.completion_schema import CompletionRequest
from schemas.create_chat_completion_schema import CreateChatCompletionRequest
from schemas.embeddings_schema import EmbeddingRequest
from schemas.ignored_keys import ignored_keys
from schemas.response_schema import ResponseRequest
from services.batch_service import Line, LineAnswer
from services.chat_service import ChatService
from services.completion_service import CompletionService
from services.embedding_service import EmbeddingService
from services.errors import Conflict, InvalidRequest, QuotaExceeded, TryLater, Unavailable
from services.large import is_large, offload
from services.model_service import ModelManager
from services.response_service import ResponseService
from services.tracing import NO_TRACER, Tracer, ending, under
from services.turn_service import IdempotencyKey

IDEMPOTENCY_KEY = "Idempotency-Key"  # the parameter of errors about it

Route = Callable[[dict[str, Any], str, IdempotencyKey], Awaitable[bytes]]


class BatchRequests:
    def __init__(
        self,
        models: ModelManager,
        chat: ChatService,
        completions: CompletionService,
        embeddings: EmbeddingService,
        responses: ResponseService,
        unknown_keys: UnknownKeys,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._tracer = tracer
        self._models = models
        self._chat = chat
        self._completions = completions
        self._embeddings = embeddings
        self._responses = responses
        self._unknown = unknown_keys
        self._routes: Mapping[str, Route] = {
            "/v1/chat/completions": self._chat_completion,
            "/v1/completions": self._completion,
            "/v1/embeddings": self._embedding,
            "/v1/responses": self._response,
        }

    def check_model(self, endpoint: str, name: str | None) -> None:
        """Raises ModelNotFound, and InvalidRequest for a model of another kind."""
        self._models.check(name, "embedding" if endpoint == "/v1/embeddings" else "chat")

    async def answer(self, endpoint: str, line: Line, owner: str, key: str) -> LineAnswer:
        """`key`: an answer that is stored is stored once, also if its request runs again. Raises TryLater for what may
        be tried again."""
        id = f"req_{uuid4().hex}"
        request_id.set(id)
        attributes = {"url.path": endpoint, "parley.request.id": id}
        span = self._tracer.root(f"batch {endpoint}", {}, attributes, kind="internal")
        with ending(span), under(span):
            answer = await self._answer(endpoint, line, owner, key, id)
            span.set({"http.response.status_code": answer.status})
            return answer

    async def _answer(self, endpoint: str, line: Line, owner: str, key: str, id: str) -> LineAnswer:
        is_large.set(line.num_bytes > LARGE)
        try:
            await offload(check_shape, line.body)
            body = await self._routes[endpoint](line.body, owner, IdempotencyKey(key, endpoint))
        except Exception as error:
            if _may_be_tried_again(error):
                raise error if isinstance(error, TryLater) else Unavailable(str(error)) from error
            found = _problem(error)
            return LineAnswer(found.status, id, orjson.dumps(found.body()))
        return LineAnswer(200, id, body)

    async def _chat_completion(self, body: dict[str, Any], owner: str, key: IdempotencyKey) -> bytes:
        request = await offload(CreateChatCompletionRequest.model_validate, body)
        _refuse("stream", request.stream)
        ignored = self._unknown.of(await offload(self._chat.unknown_keys, request))
        return await _json(await self._chat.create(request, owner, key, ignored.add))

    async def _completion(self, body: dict[str, Any], owner: str, key: IdempotencyKey) -> bytes:
        request = await offload(CompletionRequest.model_validate, body)
        _refuse("stream", request.stream)
        self._unknown.of(self._completions.unknown_keys(request))
        return await _json(await self._completions.create(request, owner), exclude_unset=True)

    async def _embedding(self, body: dict[str, Any], owner: str, key: IdempotencyKey) -> bytes:
        request = await offload(EmbeddingRequest.model_validate, body)
        self._unknown.of(ignored_keys(request))
        return await self._embeddings.create(request, owner)

    async def _response(self, body: dict[str, Any], owner: str, key: IdempotencyKey) -> bytes:
        request = await offload(ResponseRequest.model_validate, body)
        _refuse("stream", request.stream)
        _refuse("background", request.background)
        ignored = self._unknown.of(await offload(self._responses.unknown_keys, request))
        return await _json(await self._responses.create(request, owner, key, ignored.add))


def _refuse(param: str, value: object) -> None:
    if value:
        raise InvalidRequest("'%s' is not possible in a batch", param)


async def _json(answer: BaseModel, *, exclude_unset: bool = False) -> bytes:
    """As the routes write it."""
    text = await offload(answer.model_dump_json, by_alias=True, exclude_unset=exclude_unset)
    return text.encode()


def _may_be_tried_again(error: Exception) -> bool:
    """Not before the next month; but once the process that began to answer this request is known to be gone."""
    if isinstance(error, Conflict):
        return error.param == IDEMPOTENCY_KEY
    return isinstance(error, TryLater) and not isinstance(error, QuotaExceeded)


def _problem(error: Exception) -> Problem:
    if not isinstance(error, ValidationError):
        return problem(error)
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return validation_problem([{**first, "loc": ("body", *first["loc"])}])
