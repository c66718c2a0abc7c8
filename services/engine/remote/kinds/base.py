"""What a kind of server is asked, and how its answer is read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.engine.base import FinishReason, GrammarSpec, Job, Tokenizer
from services.engine.token_texts import TokenTexts
from services.errors import UnsupportedParameter


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model as its server describes it."""

    name: str | None = None  # None: the server has one and asks for no name
    max_length: int | None = None  # tokens of prompt and answer; None: not reported
    features: frozenset[str] = frozenset()  # what only some servers of a kind have


@dataclass(frozen=True, slots=True)
class RemoteJob:
    job: Job
    max_tokens: int
    cache_salt: str | None  # None: the prompt's prefix is everybody's
    markers: Mapping[str, int]  # tokens that stand for more than their text, for grammars
    tokenizer: Tokenizer
    texts: TokenTexts


@dataclass(frozen=True, slots=True)
class OutputToken:
    id: int
    logprob: float | None = None  # None: not requested, or not reported
    top: tuple[tuple[int, float], ...] = ()  # ids and logprobs, likeliest first
    is_end: bool = False  # it has ended the answer, and has no text


@dataclass(frozen=True, slots=True)
class Output:
    """What one event of an answer adds."""

    tokens: tuple[OutputToken, ...] = ()
    finish: FinishReason | None = None
    cached_tokens: int | None = None  # of the prompt; None: not in this event
    prompt: tuple[OutputToken, ...] = ()  # logprobs of the prompt's tokens


NOTHING = Output()


class UnexpectedAnswer(ValueError):
    """The event is none of this kind."""


class ErrorEvent(Exception):
    """An error in place of an answer's next part. Its text is the server's own, and not for callers."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Reader(Protocol):
    """Of one answer."""

    def read(self, event: Any) -> Output:
        """Raises ErrorEvent, and UnexpectedAnswer, also by way of KeyError, TypeError or IndexError."""
        ...


class Kind(Protocol):
    name: str
    owned_by: str  # in the list of models
    path: str  # of requests, below the server's root
    health: str  # answers 200 while the server takes requests
    packs_vectors: bool  # whether embeddings may be base64
    names_model: bool  # whether requests for vectors and scores name the model that it lists first

    def model(self, card: Mapping[str, Any], pages: Mapping[str, Any]) -> RemoteModel:
        """`card`: the model's entry in the list of models; `pages`: what `more` names, as the server answers them."""
        ...

    @property
    def more(self) -> tuple[str, ...]:
        """Paths of further descriptions of the server."""
        ...

    def body(self, job: RemoteJob, model: RemoteModel) -> dict[str, Any]:
        """The request. Raises UnsupportedParameter for what servers of this kind cannot do."""
        ...

    def reader(self, job: RemoteJob) -> Reader: ...


def check_error(event: Any) -> None:
    """Raises ErrorEvent for one, as all kinds write them."""
    if (error := event.get("error")) is None:
        return
    code = error.get("code") if isinstance(error, dict) else None
    is_unavailable = isinstance(error, dict) and error.get("type") == "service_unavailable_error"
    status = code if isinstance(code, int) else 503 if is_unavailable else 500
    raise ErrorEvent(status, json.dumps({"error": error}))


def check_reason(reason: object, finishes: Mapping[str, FinishReason]) -> None:
    """Raises ErrorEvent for an end that is none of an answer, as a request that was aborted."""
    if reason is not None and reason not in finishes:
        raise ErrorEvent(500, f"the answer ended: {reason}")


@dataclass(slots=True)
class Refusals:
    """Refuses parameters in the name of a kind."""

    kind: str
    reason: str = field(init=False)

    def __post_init__(self) -> None:
        self.reason = f"is not supported by {self.kind}, which computes for this server"

    def check(self, **given: bool) -> None:
        """Names of parameters, and whether the job has them."""
        for param, is_given in given.items():
            if is_given:
                raise UnsupportedParameter(param, self.reason)

    def grammar(self, spec: GrammarSpec) -> UnsupportedParameter:
        return UnsupportedParameter(spec.param, f"needs a grammar of a form that {self.kind} does not take")


def nucleus(job: Job) -> tuple[float, float]:
    """Temperature and top_p. A nucleus of nothing is the likeliest token, which these servers call temperature 0."""
    sampling = job.sampling
    return (sampling.temperature, sampling.top_p) if sampling.top_p > 0 else (0.0, 1.0)
