"""What an upstream answers besides tokens, as an error of this service.

Its address, its key and its own text never reach the caller: they are logged.
"""

import logging
from collections.abc import Mapping

import orjson

from services.engine.base import Job
from services.errors import EngineFailed, InvalidRequest, Overloaded, PromptTooLong, ServiceError, Unavailable

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 120.0  # clients wait no longer
LOGGED = 300  # characters of an answer
MISCONFIGURED = (401, 403, 404, 405, 501)
TOO_LONG = ("context length", "context size", "context_length", "exceed_context", "maximum context", "too long")
GRAMMAR = ("grammar", "schema", "structured", "regex", "guided", "json")


def unreachable(name: str, error: Exception) -> Unavailable:
    logger.warning("upstream %s: %s", name, type(error).__name__)
    return Unavailable("The model's server cannot be reached", retry_after=RETRY_AFTER_S)


def unknown(name: str, error: Exception) -> Unavailable:
    logger.error("upstream %s: %s", name, error)
    return Unavailable("The model's server is not what it should be; the log says why", retry_after=RETRY_AFTER_S)


def interrupted(name: str, error: Exception) -> Unavailable:
    logger.warning("upstream %s: its answer ended early (%s)", name, type(error).__name__)
    return Unavailable("The model's server ended its answer early", retry_after=RETRY_AFTER_S)


def garbled(name: str, error: Exception) -> EngineFailed:
    logger.error("upstream %s: its answer cannot be read (%s)", name, type(error).__name__)
    return EngineFailed("The model's server sent something unexpected")


def of_status(name: str, status: int, headers: Mapping[str, str], text: str, job: Job, limit: int) -> ServiceError:
    """`text`: the body, or an error event; `limit`: tokens that the server takes."""
    logger.warning("upstream %s: status %d: %s", name, status, text[:LOGGED])
    if status == 429:
        return Overloaded("The model's server has too many requests", retry_after=_retry_after(headers))
    if status >= 500 and status not in MISCONFIGURED:
        return Unavailable("The model's server is not available", retry_after=_retry_after(headers))
    if status in MISCONFIGURED:
        return EngineFailed("The model's server does not take this server's requests; the log says why")
    return _refusal(text, job, limit)


def _refusal(text: str, job: Job, limit: int) -> ServiceError:
    lowered = text.lower()
    if any(sign in lowered for sign in TOO_LONG):
        return PromptTooLong(len(job.prompt), limit, param=job.param)
    grammar = job.sampling.grammar
    if grammar and any(sign in lowered for sign in GRAMMAR):
        return InvalidRequest("'%s' is not taken by the model's server", grammar.param)
    param = _param(text)
    if param:
        return InvalidRequest("'%s' is not taken by the model's server", param)
    return InvalidRequest("The model's server refuses the request")


# what servers name, and what requests call it
PARAMS = {
    name: name
    for name in (
        *("temperature", "top_p", "top_k", "min_p", "seed", "logit_bias", "min_tokens", "ignore_eos", "priority"),
        *("repetition_penalty", "frequency_penalty", "presence_penalty", "stop_token_ids", "logprobs", "max_tokens"),
        "cache_salt",
    )
} | {
    "repeat_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "min_new_tokens": "min_tokens",
    "sampling_seed": "seed",
    "n_probs": "logprobs",
    "top_logprobs_num": "logprobs",
}


def _param(text: str) -> str | None:
    """The parameter that an error names, in its field or in its text."""
    try:
        error = orjson.loads(text).get("error")
    except (ValueError, AttributeError):
        error = None
    if not isinstance(error, dict):
        error = {"message": text}
    if (named := error.get("param")) in PARAMS:
        return PARAMS[str(named)]
    message = str(error.get("message"))
    return next((PARAMS[name] for name in PARAMS if name in message.lower()), None)


def _retry_after(headers: Mapping[str, str]) -> float:
    try:
        seconds = float(headers.get("retry-after", RETRY_AFTER_S))
    except ValueError:  # a date
        return RETRY_AFTER_S
    return min(seconds, MAX_RETRY_AFTER_S) if seconds > 0 else RETRY_AFTER_S
