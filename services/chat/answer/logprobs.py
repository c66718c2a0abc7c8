"""Tokens and how likely they were, as OpenAI's and Ollama's clients are told of them."""

from collections.abc import Iterable
from typing import Any

from schemas.chat_answer_schema import Token, TopToken
from services.engine.base import TokenLogprob

UNLIKELY = -9999.0  # in place of minus infinity, which JSON does not have


def tokens(given: Iterable[TokenLogprob]) -> list[Token]:
    return [Token(**weighed(token), top_logprobs=[TopToken(**weighed(each)) for each in token.top]) for token in given]


def weighed(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": bounded(token), "bytes": list(token.raw)}


def bounded(token: TokenLogprob) -> float:
    return max(token.logprob, UNLIKELY)
