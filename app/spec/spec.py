"""The class a spec is made from."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel, ValidationError

from app.common.disconnect import while_connected
from app.common.errors import MESSAGE_LENGTH, Problem, fault_of
from app.common.ignored import Ignored
from app.common.json_body import JsonRoute, UntypedJsonRoute
from app.common.rate_headers import rate_headers
from app.common.router import Router
from app.common.sse import Framing
from app.spec.framing import NamedEvent, Payload, server_sent, to_json
from app.spec.server import Output, Server
from schemas.chat_schema import ChatCompletionRequest
from schemas.completion_schema import CompletionRequest
from schemas.ignored_keys import ignored_keys
from services.callers import RateReport
from services.chat.request.refusals import ReportIgnored
from services.errors import InvalidRequest, ServiceError, literal
from services.large import offload
from services.parameter_names import ErrorTranslation, ParameterNames, renamed, translate_error, translate_errors

B = TypeVar("B", bound=BaseModel)
R = TypeVar("R")
T = TypeVar("T", bound=BaseModel)
PayloadStream = AsyncGenerator[Payload | NamedEvent, None]


class Endpoint(NamedTuple):
    path: str
    endpoint: Callable[..., Any]
    methods: Sequence[str]
    options: dict[str, Any]


class Spec(Generic[T]):
    """Endpoints of its own, in a wire format of its own, on the same engine as all others.

    An endpoint is a FastAPI path operation. One that asks the model hands its body to `answer`, which asks
    `decode_request` what to ask it and `encode_response` what to say.
    """

    any_content_type = False  # read bodies as JSON, whatever they were sent as
    names: ClassVar[ParameterNames] = {}  # of chat completions' parameters, where they differ here
    too_long: str | None = None  # its words for a prompt of {tokens} where a model takes {limit}
    request_id: str | None = None  # a header that has the request's id, besides x-request-id

    def __init__(self) -> None:
        self._endpoints: list[Endpoint] = []

    def add_endpoint(self, path: str, endpoint: Callable[..., Any], methods: Sequence[str], **options: Any) -> None:
        """`options` are those of FastAPI's `add_api_route`: what the OpenAPI document says of it."""
        self._endpoints.append(Endpoint(path, endpoint, [method.upper() for method in methods], options))

    @property
    def endpoints(self) -> list[Endpoint]:
        return self._endpoints.copy()

    def setup(self, server: Server) -> None:
        """Called once, before any request; endpoints may still be added."""
        self.server = server

    def decode_request(self, request: T) -> ChatCompletionRequest | CompletionRequest:
        """What the model is asked: a chat, or a plain text to go on with."""
        raise NotImplementedError(f"{type(self).__name__} has no decode_request")

    def encode_response(self, output: Output[T]) -> PayloadStream | Awaitable[Payload]:
        """The answer, or, to stream it, a generator of its items: a subclass writes it with or without `yield`."""
        raise NotImplementedError(f"{type(self).__name__} has no encode_response")

    def error_body(self, problem: Problem) -> dict[str, Any]:
        """Of whatever goes wrong on its endpoints, the refusal of a key included."""
        return problem.body()

    def rate_headers(self, report: RateReport) -> Mapping[str, str]:
        """How much of the key's limits is left."""
        return rate_headers(report)

    def framing(self) -> Framing[Payload | NamedEvent]:
        """Of what it streams: `server_sent` or `json_lines`."""
        return server_sent(self.error_body)

    def ignored(self, request: T) -> Iterable[str]:
        """What is left aside; it is named in a header, or refused by a strict server."""
        return ignored_keys(request)

    async def answer(self, body: T, request: Request) -> Response:
        ignored = await offload(self.server.ignored, self.ignored(body))
        translate = partial(self.translate_error, body)
        prepared = await offload(decoded, self.decode_request, body, translate)
        owner = self.server.owner(request)
        output = Output(body, owner, self.server.run(prepared, owner, self.ignored_reporter(ignored)))
        encoded = self.encode_response(output)
        if isinstance(encoded, AsyncGenerator):
            return await self.server.stream(_closing(encoded, output, translate), self.framing(), ignored.headers)
        return self.respond(await while_connected(request, _closed(encoded, output, translate)), ignored.headers)

    def ignored_reporter(self, ignored: Ignored) -> ReportIgnored:
        """Takes the chat completion's names of what its model has no use for."""
        return lambda names: ignored.add(renamed(name, self.names) for name in names)

    def names_of(self, request: T) -> ParameterNames:
        """`names`, and the places in this request of what its chat completion has elsewhere."""
        return self.names

    def translate_error(self, request: T, error: ServiceError) -> ServiceError:
        """A refusal of the chat completion, as one of the request that it was made of."""
        return translate_error(error, self.names_of(request), self.too_long)

    def respond(self, answer: Payload, headers: Mapping[str, str]) -> Response:
        return Response(to_json(answer), headers=headers, media_type="application/json")

    def router(self) -> Router:
        route = UntypedJsonRoute if self.any_content_type else JsonRoute
        router = Router(route_class=route, strict_content_type=not self.any_content_type)
        for path, endpoint, methods, options in self._endpoints:
            router.add_api_route(path, endpoint, methods=list(methods), **options)
        return router


def _untranslated(error: ServiceError) -> ServiceError:
    return error


def decoded(decode: Callable[[B], R], body: B, translate: ErrorTranslation = _untranslated) -> R:
    """Raises InvalidRequest for what a spec lets through and the service does not take."""
    try:
        return decode(body)
    except ValidationError as error:
        first = error.errors()[0]
        param, message = fault_of({**first, "loc": ("body", *first["loc"])})
        message = message[:MESSAGE_LENGTH]
        raise translate(
            InvalidRequest(f"'%s': {literal(message)}", param) if param else InvalidRequest(message)
        ) from None


async def _closing(items: PayloadStream, output: Output[T], translate: ErrorTranslation) -> PayloadStream:
    async with aclosing(output), aclosing(items):
        with translate_errors(translate):
            async for item in items:
                yield item


async def _closed(answer: Awaitable[Payload], output: Output[T], translate: ErrorTranslation) -> Payload:
    async with aclosing(output):
        try:
            return await answer
        except ServiceError as error:
            raise await offload(translate, error) from error.__cause__
