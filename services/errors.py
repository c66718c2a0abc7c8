"""What can go wrong, in the domain's words; `app/common/errors.py` says which status each becomes.

ServiceError
├─ InvalidRequest            the request cannot be served as it stands; `param` names the culprit
│  ├─ PromptTooLong          more tokens than the model takes
│  ├─ UnsupportedParameter   part of the contract, not (yet) served here
│  └─ GrammarStuck           nothing can follow what was said so far: known in the middle of an answer
├─ NotAuthenticated          no key, or one we do not know
├─ Forbidden
├─ NotFound                  also what belongs to somebody else
│  └─ ModelNotFound
├─ Conflict                  two writers on one conversation
├─ Overloaded                the queue is full, try again in `retry_after` seconds
├─ Unavailable               loading, draining, or the database is away
├─ Stopped                   the answer's end was asked for
└─ EngineFailed
"""


class ServiceError(Exception):
    """`message` is shown to the caller: it never carries secrets, paths or the caller's own text."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(ServiceError): ...


class PromptTooLong(InvalidRequest):
    """In OpenAI's words: by them programs find out that they are to send less, and try again."""

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
    """Common parent of what is worth a retry; `retry_after` in seconds."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(TryLater): ...


class Unavailable(TryLater): ...


class Stopped(ServiceError): ...


class EngineFailed(ServiceError): ...
