"""Translates service errors to HTTP: a table of status codes and OpenAI's body, `{"error": {"message", "type", …}}`."""

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
    """The client has disconnected; the error is for the log and the metrics."""


class HostNotAllowed(errors.Forbidden):
    """The Host header may name a page that is rebound to this server."""


STATUS: dict[type[errors.ServiceError], tuple[int, str, str | None]] = {
    errors.PromptTooLong: (400, "invalid_request_error", "context_length_exceeded"),
    errors.UnsupportedParameter: (400, "invalid_request_error", "unsupported_parameter"),
    errors.GrammarStuck: (400, "invalid_request_error", "grammar_stuck"),
    errors.TooLarge: (413, "invalid_request_error", None),
    errors.InvalidRequest: (400, "invalid_request_error", None),
    errors.NotAuthenticated: (401, "authentication_error", "invalid_api_key"),
    HostNotAllowed: (403, "permission_error", "host_not_allowed"),
    errors.Forbidden: (403, "permission_error", None),
    errors.ModelNotFound: (404, "invalid_request_error", "model_not_found"),
    errors.NotFound: (404, "invalid_request_error", "not_found"),
    errors.Conflict: (409, "conflict_error", None),
    errors.Overloaded: (429, "rate_limit_error", "overloaded"),
    errors.RateLimited: (429, "rate_limit_error", "rate_limit_exceeded"),
    errors.RequestsLimited: (429, "requests", "rate_limit_exceeded"),
    errors.TokensLimited: (429, "tokens", "rate_limit_exceeded"),
    errors.QuotaExceeded: (429, "insufficient_quota", "insufficient_quota"),
    errors.Unavailable: (503, "service_unavailable_error", None),
    errors.Stopped: (400, "invalid_request_error", "stopped"),
    errors.EngineFailed: (500, "server_error", None),
    ClientGone: (499, "client_closed_request", None),
    errors.ServiceError: (500, "server_error", None),
}

TYPE_OF_STATUS = {401: "authentication_error", 403: "permission_error", 404: "invalid_request_error"}
MESSAGE_LENGTH = 500
ERROR_BODY = "error_body"  # in the request's state if its protocol is not OpenAI's
PARAM_LENGTH = 200  # it may contain keys of the caller


@dataclass(frozen=True, slots=True)
class Problem:
    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    retry_after: float | None = None

    def body(self) -> dict[str, Any]:
        """Always has all four fields: clients read each of them."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self, scope: Scope) -> Response:
        """With the error body of the protocol of this request's path."""
        body: ErrorBody = scope.get("state", {}).get(ERROR_BODY, Problem.body)
        headers = {} if self.retry_after is None else {"Retry-After": f"{self.retry_after:.10g}"}
        return JSONResponse(body(self), self.status, headers)


ErrorBody = Callable[[Problem], dict[str, Any]]


def problem(error: Exception) -> Problem:
    """Translates any exception; an unexpected one is logged and not described to the client."""
    if not isinstance(error, errors.ServiceError):
        logger.error("unexpected error", exc_info=error)
        return Problem(500, "The server had an error while processing the request", "server_error")
    status, type_, code = next(STATUS[known] for known in type(error).__mro__ if known in STATUS)
    retry_after = error.retry_after if isinstance(error, errors.TryLater) else None
    return Problem(status, error.message, type_, error.param, code, retry_after)


def install(app: FastAPI) -> None:
    app.add_exception_handler(errors.ServiceError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)  # RequestLog handles all others


async def _on_error(request: Request, error: Exception) -> Response:
    return problem(error).response(request.scope)


async def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return validation_problem(error.errors()).response(request.scope)


def validation_problem(found: Any) -> Problem:
    """The first of pydantic's errors, in one bounded line that does not quote the input."""
    first = found[0]
    if first["type"] == "json_invalid":
        return Problem(400, "The body is not valid JSON", "invalid_request_error", None, "invalid_json")
    if first["loc"] == ("body",) and first["type"] not in ("value_error", "fault"):
        message = "The body must be a JSON object, sent with Content-Type: application/json"
        return Problem(400, message, "invalid_request_error", None, "invalid_json")
    param, message = fault_of(first)
    text = f"'{param}': {message}" if param else message
    return Problem(400, text[:MESSAGE_LENGTH], "invalid_request_error", param, "invalid_value")


def fault_of(first: Any) -> tuple[str | None, str]:
    """The parameter that pydantic's error is about, and what is wrong with it."""
    place = [str(step) for step in first["loc"][1:] if step != "[key]"]  # without "body", "query", ...
    return ".".join(place)[:PARAM_LENGTH] or None, first["msg"].removeprefix("Value error, ")


async def _on_http(request: Request, error: Exception) -> Response:
    """Starlette's errors: unknown route, wrong method and the like."""
    assert isinstance(error, HTTPException)
    found = _http_problem(request, error.status_code)
    response = found.response(request.scope)
    response.headers.update(error.headers or {})
    if (
        error.status_code == HTTPStatus.METHOD_NOT_ALLOWED
    ):  # Starlette names the methods of one route, but a path has several
        response.headers["Allow"] = ", ".join(request.app.state.routes.methods(request.url.path))
    return response


def _http_problem(request: Request, status: int) -> Problem:
    message = f"{HTTPStatus(status).phrase}: {request.method} {request.url.path[:200]}"
    type_ = TYPE_OF_STATUS.get(status, "invalid_request_error")
    if status == HTTPStatus.NOT_FOUND and (reason := unserved.reason(request.url.path)):
        return Problem(status, f"{message} is not served here ({reason})", type_, None, "unsupported_endpoint")
    return Problem(status, message, type_)
