"""Parses an exchange: times of the content, amount, and errors."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from pydantic import BaseModel, JsonValue, ValidationError

from tools.bench.exchange import Arrival, Exchange
from tools.bench.load import ChatLoad, Load

DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Answer:
    seconds: float
    first: float | None  # seconds to the first content; None: no content
    gaps: list[float]  # seconds between contents
    units: int  # tokens or texts
    prompt_tokens: int | None
    error: str | None


class Delta(BaseModel):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[JsonValue] | None = None

    @property
    def says_something(self) -> bool:
        return bool(self.content or self.reasoning or self.reasoning_content or self.tool_calls)


class Choice(BaseModel):
    delta: Delta = Delta()
    finish_reason: str | None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int = 0


class Chunk(BaseModel):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: JsonValue = None


class Embeddings(BaseModel):
    data: list[JsonValue]
    usage: Usage | None = None


def read(load: Load, exchange: Exchange) -> Answer:
    try:
        return read_chat(exchange) if isinstance(load, ChatLoad) else read_embeddings(exchange)
    except ValidationError as problem:
        return Answer(exchange.seconds, None, [], 0, None, f"not as OpenAI answers: {problem.errors()[0]['msg']}")


def read_chat(exchange: Exchange) -> Answer:
    times, usage, error, finished = list[float](), None, exchange.error, False
    for at, chunk in chunks(exchange.arrivals):
        usage = chunk.usage or usage
        error = error or (chunk.error and f"in the stream: {chunk.error}") or None
        finished = finished or any(choice.finish_reason for choice in chunk.choices)
        times += [at for choice in chunk.choices if choice.delta.says_something]
    if not finished:
        error = error or "the stream ended before its answer did"
    units = usage.completion_tokens if usage else len(times)  # most servers send a chunk per token
    gaps = [round(after - before, 6) for before, after in pairwise(times)]
    prompt_tokens = usage.prompt_tokens if usage else None
    return Answer(exchange.seconds, times[0] if times else None, gaps, units, prompt_tokens, error)


def chunks(arrivals: list[Arrival]) -> Iterator[tuple[float, Chunk]]:
    rest = b""
    for arrival in arrivals:
        *lines, rest = (rest + arrival.data).split(b"\n")
        for line in lines:
            field, _, value = line.partition(b":")
            if field == b"data" and value.strip() != DONE:
                yield arrival.at, Chunk.model_validate_json(value)


def read_embeddings(exchange: Exchange) -> Answer:
    if exchange.error:
        return Answer(exchange.seconds, None, [], 0, None, exchange.error)
    body = Embeddings.model_validate_json(b"".join(arrival.data for arrival in exchange.arrivals))
    prompt_tokens = body.usage.prompt_tokens if body.usage else None
    return Answer(exchange.seconds, exchange.seconds, [], len(body.data), prompt_tokens, None)
