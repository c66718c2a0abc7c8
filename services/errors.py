"""Errors of the services; `app/common/errors.py` maps them to status codes.

ServiceError
├─ InvalidRequest            the request cannot be served as it is; `param` names the parameter
│  ├─ PromptTooLong          more tokens than the context length
│  ├─ UnsupportedParameter   part of the contract, not (yet) served here
│  └─ GrammarStuck           the grammar allows no further token, in the middle of an answer
├─ NotAuthenticated          no key, or an unknown one
├─ Forbidden
├─ NotFound                  also what belongs to another owner
│  └─ ModelNotFound
├─ Conflict                  two writers on one conversation
├─ Overloaded                the queue is full; retry after `retry_after` seconds
├─ Unavailable               loading, draining, or the database is unreachable
├─ Stopped                   the answer was cancelled
└─ EngineFailed
"""


class ServiceError(Exception):
    """`message` is shown to the caller: it must not contain secrets, paths or the caller's text."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(ServiceError): ...


class PromptTooLong(InvalidRequest):
    """Has OpenAI's message, by which programs recognise the error and retry with a shorter prompt."""

    def __init__(self, tokens: int, limit: int, *, param: str | None = None, exactly: bool = True) -> None:
        self.tokens = tokens
        self.limit = limit
        what = (param or "prompt").partition(".")[0]
        super().__init__(
            f"This model's maximum context length is {limit} tokens. However, your {what} resulted in "
            f"{'' if exactly else 'about '}{tokens} tokens. "
            f"Please reduce the length of the {what}.",
            param=param,
        )


class UnsupportedParameter(InvalidRequest):
    def __init__(self, param: str, why: str = "is not supported by this server") -> None:
        super().__init__(f"'{param}' {why}", param=param)


class GrammarStuck(InvalidRequest): ...


class NotAuthenticated(ServiceError): ...


class Forbidden(ServiceError): ...


class NotFound(ServiceError): ...


class ModelNotFound(NotFound): ...


class Conflict(ServiceError): ...


class TryLater(ServiceError):
    """Errors worth a retry; `retry_after` in seconds."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(TryLater): ...


class Unavailable(TryLater): ...


class Stopped(ServiceError): ...


class EngineFailed(ServiceError): ...
