"""Anthropic's Messages API as a spec."""

from collections.abc import Awaitable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, ClassVar, TypeVar

from app.common.log import request_id
from app.common.openapi import EVENTS
from app.spec import (
    ChatCompletionRequest,
    Framing,
    NamedEvent,
    Output,
    Payload,
    PayloadStream,
    Problem,
    Request,
    Response,
    ServiceError,
    Spec,
    decoded,
    server_sent,
)
from app.spec.anthropic.answer import EventEncoder, MessageBuilder, ThinkingOutputMode
from app.spec.anthropic.request import NAMES, chat, ignored, names
from app.spec.anthropic.sealed_thinking import opened, sealed
from schemas.anthropic_answer_schema import AnthropicMessage, TokenCount
from schemas.anthropic_schema import CountRequest, MessagesRequest, ThinkingConfig
from services.callers import RateReport
from services.large import offload
from services.parameter_names import ParameterNames, translate_error, translate_errors

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
R = TypeVar("R", bound=CountRequest)
PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class AnthropicSpec(Spec[MessagesRequest]):
    request_id = "request-id"
    names: ClassVar[ParameterNames] = NAMES
    too_long = "prompt is too long: {tokens} tokens > {limit} maximum"  # by which Claude Code compacts, and goes on

    def __init__(self) -> None:
        super().__init__()
        documented: dict[str, Any] = {"tags": ["anthropic"]}
        self.add_endpoint(
            "/v1/messages", self.create, ["POST"], response_model=AnthropicMessage, responses=EVENTS, **documented
        )
        self.add_endpoint("/v1/messages/count_tokens", self.count, ["POST"], response_model=TokenCount, **documented)

    async def create(self, body: MessagesRequest, request: Request) -> Response:
        return await self.answer(await self._opened(body, request), request)

    async def count(self, body: CountRequest, request: Request) -> Response:
        body = await self._opened(body, request)
        left_aside = await offload(self.server.ignored, ignored(body))
        translate = partial(self.translate_error, body)
        chat_request = await offload(decoded, chat, body, translate)
        with translate_errors(translate):
            num_tokens = await self.server.count(
                chat_request, self.server.owner(request), self.ignored_reporter(left_aside)
            )
        return self.respond(TokenCount(input_tokens=num_tokens), left_aside.headers)

    async def _opened(self, body: R, request: Request) -> R:
        if not any(sealed(body.messages)):
            return body
        seal = await self.server.seal(self.server.owner(request))
        return await offload(opened, body, seal)

    def translate_error(self, request: CountRequest, error: ServiceError) -> ServiceError:
        return translate_error(error, names(request), self.too_long)

    def decode_request(self, request: MessagesRequest) -> ChatCompletionRequest:
        return chat(request)

    def encode_response(self, output: Output[MessagesRequest]) -> PayloadStream | Awaitable[Payload]:
        return self._stream(output) if output.request.stream else self._message(output)

    async def _stream(self, output: Output[MessagesRequest]) -> PayloadStream:
        encoder = await self._encoder(output)
        async for event in output:
            for each in encoder.events(event):
                yield NamedEvent(each.type, each)

    async def _message(self, output: Output[MessagesRequest]) -> Payload:
        encoder, builder = await self._encoder(output), MessageBuilder()
        async for event in output:
            for each in encoder.events(event):
                builder.add(each)
        return builder.message()

    async def _encoder(self, output: Output[MessagesRequest]) -> EventEncoder:
        # the seal is there before the first event: a database that goes away breaks no answer
        thinking = await self._thinking_mode(output.request.thinking, output.owner)
        return EventEncoder(output.request.max_tokens, thinking)

    async def _thinking_mode(self, thinking: ThinkingConfig | None, owner: str) -> ThinkingOutputMode | None:
        if thinking is None or thinking.type == "disabled":
            return None
        seal = await self.server.seal(owner)
        return ThinkingOutputMode(seal.closing("reasoning"), shown=thinking.display == "summarized")

    def error_body(self, problem: Problem) -> dict[str, Any]:
        kind = TYPES.get(problem.status, "invalid_request_error" if problem.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": problem.message}, "request_id": request_id.get()}

    def rate_headers(self, report: RateReport) -> Mapping[str, str]:
        return dict(_rate_headers(report))

    def framing(self) -> Framing[Payload | NamedEvent]:
        return server_sent(self.error_body, keepalive=PING)

    def ignored(self, request: MessagesRequest) -> Iterable[str]:
        return ignored(request)


def _rate_headers(report: RateReport) -> Iterator[tuple[str, str]]:
    for kind, status in (("requests", report.requests), ("tokens", report.tokens)):
        if status is not None:
            reset = datetime.now(UTC) + timedelta(seconds=status.reset_s)
            yield f"anthropic-ratelimit-{kind}-limit", str(status.limit)
            yield f"anthropic-ratelimit-{kind}-remaining", str(status.remaining)
            yield f"anthropic-ratelimit-{kind}-reset", reset.strftime("%Y-%m-%dT%H:%M:%SZ")
