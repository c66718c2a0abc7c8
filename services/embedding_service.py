"""Texts or token ids -> embeddings in OpenAI's format. Work that grows with the inputs runs in worker threads."""

import asyncio
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol, TypeVar, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from schemas.embeddings_schema import EmbeddingRequest
from services.chat.request import long_text
from services.engine.base import EmbeddingEngine, Embeddings, Pair, TextPrompts
from services.errors import InvalidRequest, PromptTooLong, literal
from services.history.usage import input_usage
from services.history.usage_ledger import UsageLedger
from services.limit_service import UNLIMITED, Limiter
from services.metrics_service import Metrics
from services.model_service import ModelManager
from services.text_service import TextService
from services.trace_service import measured, traced_embedding
from services.tracing import Span

# The prompt that a model has for a use, by the names that models give it. A model without one treats both alike.
QUERY, DOCUMENT = ("query", "search_query"), ("document", "passage", "corpus", "search_document")
PROMPTS_OF_TYPE = dict.fromkeys(("query", "search_query"), QUERY) | dict.fromkeys(
    ("document", "passage", "search_document"), DOCUMENT
)

BATCH = 262_144  # characters, or token ids, that are tokenised together

Floats = NDArray[np.float32]
T = TypeVar("T")


class Encoding(Protocol):
    ids: list[int]


class Backend(Protocol):
    """The `tokenizers` library below most of `transformers`' tokenizers. Without token offsets it is a fifth faster."""

    def encode_batch_fast(self, input: Sequence[str], /) -> list[Encoding]: ...


class BatchTokenizer(Protocol):
    """Methods of `transformers` tokenizers beyond those of `Tokenizer`."""

    all_special_ids: list[int]

    def __len__(self) -> int: ...

    def __call__(
        self,
        text: Sequence[str],
        text_pair: Sequence[str] | None = None,
        *,
        return_attention_mask: bool,
        return_token_type_ids: bool | None = None,
        verbose: bool,
    ) -> Mapping[str, list[list[int]]]: ...


class EmbeddingService:
    def __init__(
        self,
        models: ModelManager,
        metrics: Metrics,
        ledger: UsageLedger,
        limits: Limiter = UNLIMITED,
        texts: TextService | None = None,
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._ledger = ledger
        self._limits = limits
        self._texts = texts or TextService()

    async def create(self, request: EmbeddingRequest, owner: str) -> bytes:
        """The answer as JSON: 2,048 vectors are megabytes, too much to serialise on the event loop.

        Raises PromptTooLong and InvalidRequest for the first wrong input, and the engine's errors.
        """
        with traced_embedding(request) as span:
            return await self._create(request, owner, span)

    async def _create(self, request: EmbeddingRequest, owner: str, span: Span) -> bytes:
        started = time.perf_counter()
        async with self._models.lease(request.model, "embedding") as model:
            _check_limit("dimensions", request.dimensions, model.engine.dimensions)
            async with self._texts.room(sum(map(len, request.inputs))):
                texts = prompted(request, model.engine.prompts)
                inputs = await asyncio.to_thread(
                    rows_of, texts, model.engine, request.truncate_prompt_tokens, request.name_of
                )
            tokens = sum(map(len, inputs))
            async with self._limits.reserved(model.id, tokens) as reservation:
                embeddings = await model.engine.embed(inputs, owner)
                reservation.used = tokens
        measured(span, "embeddings", model.name, tokens)
        self._metrics.embedded(model.id, tokens)
        await self._ledger.record(input_usage(model.id, "embeddings", tokens, started))
        return await asyncio.to_thread(answer, request, model.name, embeddings, tokens)


def prompted(request: EmbeddingRequest, prompts: TextPrompts) -> list[str] | list[list[int]]:
    """The inputs behind the prompt that the request names, or the one that the model puts in front of all texts."""
    prompt = _prompt(request, prompts)
    texts = [f"{prompt}{each}" for each in request.inputs if isinstance(each, str)]
    if not texts and (param := _prompt_param(request)):
        raise InvalidRequest("'%s' goes with texts, not with token ids", param)
    if prompt and texts and not prompts.pools:
        param = _prompt_param(request) or "input"
        raise InvalidRequest("'%s': this model leaves prompts out of its pooling, which is not supported", param)
    return texts or request.inputs


def _prompt_param(request: EmbeddingRequest) -> str | None:
    return next((name for name in ("prompt_name", "input_type") if getattr(request, name) is not None), None)


def _prompt(request: EmbeddingRequest, prompts: TextPrompts) -> str:
    name = request.prompt_name
    if name is not None and request.input_type is not None:
        raise InvalidRequest("'%s' does not go with '%s'", "prompt_name", "input_type")
    if request.input_type is not None:
        names = PROMPTS_OF_TYPE.get(request.input_type)
        if names is None:
            raise InvalidRequest(f"'%s' must be one of {', '.join(PROMPTS_OF_TYPE)}", "input_type")
        return next((prompts.texts[each] for each in names if each in prompts.texts), "")
    if name is not None and name not in prompts.texts:
        known = ", ".join(prompts.texts) or "none"
        raise InvalidRequest(f"'%s': this model has no such prompt, it has {literal(known)}", "prompt_name")
    return prompts.texts.get(name or prompts.default or "", "")


def _check_limit(param: str, value: int | None, limit: int) -> None:
    if value is not None and value > limit:
        raise InvalidRequest(f"'{param}' is {value}, at most {limit} with this model", param=param)


def rows_of(
    inputs: list[str] | list[list[int]], engine: EmbeddingEngine, limit: int | None, name_of: Callable[[int], str]
) -> list[list[int]]:
    """Token ids, truncated to `limit`, -1 for the model's limit; `name_of` names an input in errors."""
    truncation = _Truncation.of(engine, limit)
    rows: list[list[int]] = []
    sequence: Sequence[str | list[int]] = inputs
    for batch in batches(sequence, len):  # an input that is too long is rejected before the others are tokenised
        rows += truncation.rows(truncation.token_ids(batch, len(rows), name_of), len(rows), name_of)
    return rows


@dataclass(frozen=True, slots=True)
class _Truncation:
    """Truncates or rejects inputs that are too long for a model."""

    tokenizer: BatchTokenizer
    max_length: int
    keep: int | None  # number of first tokens to keep; None: longer inputs are rejected

    @classmethod
    def of(cls, engine: EmbeddingEngine, limit: int | None) -> "_Truncation":
        _check_limit("truncate_prompt_tokens", limit, engine.max_length)
        # engines load transformers' tokenizers, which have more methods than the protocol
        tokenizer = cast(BatchTokenizer, engine.tokenizer)
        return cls(tokenizer, engine.max_length, engine.max_length if limit == -1 else limit)

    def token_ids(
        self, batch: Sequence[str | list[int]], first: int, name_of: Callable[[int], str]
    ) -> Sequence[list[int]]:
        texts = [self.text(each, name_of(index)) for index, each in enumerate(batch, first) if isinstance(each, str)]
        return _token_ids(texts, self.tokenizer) if texts else [each for each in batch if not isinstance(each, str)]

    def text(self, text: str, name: str) -> str:
        """As much of the text as can be within the limit."""
        if self.keep:
            return long_text.head(text, self.keep, self._count)
        if (tokens := long_text.overflow(text, self.max_length, self._count)) is not None:
            raise PromptTooLong(tokens, self.max_length, param=name, exactly=False)
        return text

    def rows(self, rows: Sequence[list[int]], first: int, name_of: Callable[[int], str]) -> list[list[int]]:
        special = frozenset(self.tokenizer.all_special_ids)
        truncated = [shorten(row, self.keep, special) if self.keep else row for row in rows]
        vocabulary = len(self.tokenizer)
        for index, row in enumerate(truncated, first):
            _check(row, name_of(index), self.max_length, vocabulary)
        return truncated

    def _count(self, text: str) -> int:
        return len(_token_ids([text], self.tokenizer)[0])


def batches(inputs: Sequence[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Batches of about BATCH characters, in order."""
    batch: list[T] = []
    left = BATCH
    for each in inputs:
        batch.append(each)
        left -= size(each)
        if left <= 0:
            yield batch
            batch, left = [], BATCH
    if batch:
        yield batch


def _token_ids(texts: Sequence[str], tokenizer: BatchTokenizer) -> list[list[int]]:
    backend: Backend | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return [encoding.ids for encoding in backend.encode_batch_fast(texts)]
    # unused outputs are switched off, and the warning about texts that we reject ourselves
    encoded = tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, verbose=False)
    return encoded["input_ids"]


def pairs_of(
    texts: Sequence[tuple[str, str]], engine: EmbeddingEngine, limit: int | None, name_of: Callable[[int], str]
) -> list[Pair]:
    """As rows_of(), for a cross-encoder: the second text of a pair comes last and is truncated."""
    truncation = _Truncation.of(engine, limit)
    known: dict[str, str] = {}  # truncated texts: one is often compared with many

    def truncated_text(text: str, index: int) -> str:
        return known[text] if text in known else known.setdefault(text, truncation.text(text, name_of(index)))

    truncated = [
        (truncated_text(first, index), truncated_text(second, index)) for index, (first, second) in enumerate(texts)
    ]
    pairs: list[Pair] = []
    for batch in batches(truncated, lambda pair: sum(map(len, pair))):
        first, second = map(list, zip(*batch, strict=True))
        encoded = truncation.tokenizer(first, second, return_attention_mask=False, verbose=False)
        all_types = encoded.get("token_type_ids") or [[0] * len(row) for row in encoded["input_ids"]]
        rows = truncation.rows(encoded["input_ids"], len(pairs), name_of)
        for row, whole, types, texts_of in zip(rows, encoded["input_ids"], all_types, batch, strict=True):
            pairs.append(Pair(row, types[: len(row)], texts_of, is_cut=len(row) < len(whole)))
    return pairs


def shorten(tokens: list[int], limit: int, special: frozenset[int]) -> list[int]:
    """The first `limit` tokens, with the special tokens (a [SEP], a </s>) that end the input."""
    if len(tokens) <= limit:
        return tokens
    tail = min(limit, sum(1 for _ in takewhile(special.__contains__, reversed(tokens))))
    return tokens[: limit - tail] + tokens[len(tokens) - tail :]


def _check(tokens: list[int], name: str, max_length: int, vocabulary: int) -> None:
    if not tokens:
        raise InvalidRequest(f"{name} has no tokens", param=name)
    if len(tokens) > max_length:
        raise PromptTooLong(len(tokens), max_length, param=name)
    if max(tokens) >= vocabulary:
        raise InvalidRequest(f"{name} holds a token id outside the model's vocabulary of {vocabulary}", param=name)


def answer(request: EmbeddingRequest, model: str, embeddings: Embeddings, tokens: int) -> bytes:
    vectors = resize(embeddings, request.dimensions)
    # serialised row by row: one call would hold the interpreter lock, and so stall the event loop
    data = [orjson.Fragment(_item(index, vector, request)) for index, vector in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps({"object": "list", "data": data, "model": model, "usage": usage})


def resize(embeddings: Embeddings, dimensions: int | None) -> Floats:
    """Vectors cut to `dimensions` and normalised again. This is meant for models trained for it (Matryoshka), and not
    rejected for others."""
    vectors: Floats = np.frombuffer(embeddings.data, dtype="<f4").reshape(-1, embeddings.dimensions)
    if dimensions is None or dimensions == embeddings.dimensions:
        return vectors
    short = vectors[:, :dimensions]
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    unit: Floats = np.divide(short, np.maximum(lengths, 1e-12), dtype=np.float32)
    return unit


def _item(index: int, vector: Floats, request: EmbeddingRequest) -> bytes:
    embedding = b64encode(vector.tobytes()).decode() if request.encoding_format == "base64" else vector
    item = {"object": "embedding", "index": index, "embedding": embedding}
    return orjson.dumps(item, option=orjson.OPT_SERIALIZE_NUMPY)
