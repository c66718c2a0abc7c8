"""Our errors as HTTP: the one table and the one body, `{"error": {"message", "type", "param", "code"}}`."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.common import unserved
from services import errors

logger = logging.getLogger(__name__)


class ClientGone(errors.ServiceError):
    """Nobody reads the answer to this one; the log and the counters do."""


class HostNotAllowed(errors.Forbidden):
    """The name in the header Host may be that of somebody else's page."""


STATUS: dict[type[errors.ServiceError], tuple[int, str, str | None]] = {
    errors.PromptTooLong: (400, "invalid_request_error", "context_length_exceeded"),
    errors.UnsupportedParameter: (400, "invalid_request_error", "unsupported_parameter"),
    errors.GrammarStuck: (400, "invalid_request_error", "grammar_stuck"),
    errors.InvalidRequest: (400, "invalid_request_error", None),
    errors.NotAuthenticated: (401, "authentication_error", "invalid_api_key"),
    HostNotAllowed: (403, "permission_error", "host_not_allowed"),
    errors.Forbidden: (403, "permission_error", None),
    errors.ModelNotFound: (404, "invalid_request_error", "model_not_found"),
    errors.NotFound: (404, "invalid_request_error", "not_found"),
    errors.Conflict: (409, "conflict_error", None),
    errors.Overloaded: (429, "rate_limit_error", "overloaded"),
    errors.Unavailable: (503, "service_unavailable_error", None),
    errors.Stopped: (400, "invalid_request_error", "stopped"),
    errors.EngineFailed: (500, "server_error", None),
    ClientGone: (499, "client_closed_request", None),
    errors.ServiceError: (500, "server_error", None),
}

TYPE_OF_STATUS = {401: "authentication_error", 403: "permission_error", 404: "invalid_request_error"}
MESSAGE_LENGTH = 500
ERROR_BODY = "error_body"  # in a request's state, where its protocol is another than OpenAI's
PARAM_LENGTH = 200  # keys of the caller's are part of it


@dataclass(frozen=True, slots=True)
class Problem:
    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    retry_after: float | None = None

    def body(self) -> dict[str, Any]:
        """All four fields, always: clients read each of them."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self, scope: Scope) -> Response:
        """With the body that readers of this request's path expect."""
        body: ErrorBody = scope.get("state", {}).get(ERROR_BODY, Problem.body)
        headers = {} if self.retry_after is None else {"Retry-After": f"{self.retry_after:g}"}
        return JSONResponse(body(self), self.status, headers)


ErrorBody = Callable[[Problem], dict[str, Any]]


def problem(error: Exception) -> Problem:
    """What any exception becomes; one that we do not know is told to the log alone."""
    if not isinstance(error, errors.ServiceError):
        logger.error("unexpected error", exc_info=error)
        return Problem(500, "The server had an error while processing the request", "server_error")
    status, type_, code = next(STATUS[known] for known in type(error).__mro__ if known in STATUS)
    retry_after = error.retry_after if isinstance(error, errors.TryLater) else None
    return Problem(status, error.message, type_, error.param, code, retry_after)


def install(app: FastAPI) -> None:
    app.add_exception_handler(errors.ServiceError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)  # any other exception: RequestLog


async def _on_error(request: Request, error: Exception) -> Response:
    return problem(error).response(request.scope)


async def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return invalid(error.errors()).response(request.scope)


def invalid(found: Any) -> Problem:
    """The first of pydantic's errors, in one bounded line that does not repeat the input."""
    first = found[0]
    if first["type"] == "json_invalid":
        return Problem(400, "The body is not valid JSON", "invalid_request_error", None, "invalid_json")
    if first["loc"] == ("body",) and first["type"] not in ("value_error", "fault"):
        message = "The body must be a JSON object, sent with Content-Type: application/json"
        return Problem(400, message, "invalid_request_error", None, "invalid_json")
    place = [str(step) for step in first["loc"][1:] if step != "[key]"]  # without "body", "query", ...
    param = ".".join(place)[:PARAM_LENGTH] or None
    message = first["msg"].removeprefix("Value error, ")
    text = f"'{param}': {message}" if param else message
    return Problem(400, text[:MESSAGE_LENGTH], "invalid_request_error", param, "invalid_value")


async def _on_http(request: Request, error: Exception) -> Response:
    """Starlette's own: no such route, no such method, and the like."""
    assert isinstance(error, HTTPException)
    found = _no_route(request, error.status_code)
    response = found.response(request.scope)
    response.headers.update(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:  # Starlette names those of one route, a path has several
        response.headers["Allow"] = ", ".join(request.app.state.routes.methods(request.url.path))
    return response


def _no_route(request: Request, status: int) -> Problem:
    message = f"{HTTPStatus(status).phrase}: {request.method} {request.url.path[:200]}"
    type_ = TYPE_OF_STATUS.get(status, "invalid_request_error")
    if status == HTTPStatus.NOT_FOUND and (reason := unserved.reason(request.url.path)):
        return Problem(status, f"{message} is not served here ({reason})", type_, None, "unsupported_endpoint")
    return Problem(status, message, type_)
