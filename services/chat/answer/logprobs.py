"""Tokens and their logprobs, in OpenAI's and Ollama's forms."""

from collections.abc import Iterable
from typing import Any

from schemas.chat_answer_schema import Token, TopToken
from services.engine.base import TokenLogprob

UNLIKELY = -9999.0  # in place of minus infinity, which JSON does not have


def tokens(logprobs: Iterable[TokenLogprob]) -> list[Token]:
    return [
        Token(**token_logprob(token), top_logprobs=[TopToken(**token_logprob(each)) for each in token.top])
        for token in logprobs
    ]


def token_logprob(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": bounded(token), "bytes": list(token.raw)}


def bounded(token: TokenLogprob) -> float:
    return max(token.logprob, UNLIKELY)
