"""Errors of the services; `app/common/errors.py` maps them to status codes.

ServiceError
├─ InvalidRequest            the request cannot be served as it is; `param` names the parameter
│  ├─ PromptTooLong          more tokens than the context length
│  ├─ UnsupportedParameter   part of the contract, not (yet) served here
│  ├─ TooLarge               a file, or all files of a project
│  └─ GrammarStuck           the grammar allows no further token, in the middle of an answer
├─ NotAuthenticated          no key, or an unknown one
├─ Forbidden
├─ NotFound                  also what belongs to another owner
│  └─ ModelNotFound
├─ Conflict                  two writers on one conversation
├─ Overloaded                the queue is full; retry after `retry_after` seconds
├─ RateLimited               of a key or project: RequestsLimited, TokensLimited
├─ QuotaExceeded             of a key, until the next month
├─ Unavailable               loading, draining, or the database is unreachable
├─ Stopped                   the answer was cancelled
└─ EngineFailed
"""

from collections.abc import Callable
from typing import Self


class ServiceError(Exception):
    """`message` is shown to the caller: it must not contain secrets, paths or the caller's text.

    Parameters are named as arguments of the text, as in a log line: `InvalidRequest("'%s' goes with '%s'", "a", "b")`.
    The message is put together when it is read, because each protocol has its own names for them
    (`services/parameter_names.py`). `param` is by default the first of them.
    """

    def __init__(self, text: str, *names: str, param: str | None = None) -> None:
        super().__init__(text, *names)
        self.text = text
        self.names = names
        self.param = param if param is not None or not names else names[0]

    @property
    def message(self) -> str:
        return self.text % self.names if self.names else self.text

    def __str__(self) -> str:
        return self.message

    def renamed(self, rename: Callable[[str], str]) -> Self:
        """A copy with other names of its parameters; the error itself may reach several callers."""
        error = type(self).__new__(type(self), *self.args)
        error.__dict__.update(self.__dict__)
        error.names = tuple(map(rename, self.names))
        error.param = self.param and rename(self.param)
        return error


def literal(text: str) -> str:
    """Text of any origin as part of an error's text with names."""
    return text.replace("%", "%%")


class InvalidRequest(ServiceError): ...


class PromptTooLong(InvalidRequest):
    """`template` has `{tokens}` and `{limit}`. The default is OpenAI's message, by which programs recognise the error
    and retry with a shorter prompt."""

    def __init__(
        self, tokens: int, limit: int, *, param: str | None = None, exactly: bool = True, template: str | None = None
    ) -> None:
        self.tokens = tokens
        self.limit = limit
        what = (param or "prompt").partition(".")[0]
        openais = (
            f"This model's maximum context length is {{limit}} tokens. However, your {what} resulted in "
            f"{'' if exactly else 'about '}{{tokens}} tokens. "
            f"Please reduce the length of the {what}."
        )
        super().__init__((template or openais).format(tokens=tokens, limit=limit), param=param)


class UnsupportedParameter(InvalidRequest):
    """`why` may name other parameters, as the texts of all errors do."""

    def __init__(self, param: str, why: str = "is not supported by this server", *names: str) -> None:
        super().__init__(f"'%s' {why}", param, *names)


class TooLarge(InvalidRequest): ...


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


class RateLimited(TryLater): ...


class RequestsLimited(RateLimited): ...


class TokensLimited(RateLimited): ...


class QuotaExceeded(TryLater): ...


class Unavailable(TryLater): ...


class Stopped(ServiceError): ...


class EngineFailed(ServiceError): ...
