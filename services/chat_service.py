"""Chat completions: one pipeline of events; a plain answer is the fold of the stream.

The engine admits a request before its input items are written, so that a rejected request (429, 503, a prompt that is
too long) leaves nothing behind, and a retry is not stored twice.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from database.usage_repository import Usage
from schemas.chat_answer_schema import ChatCompletion, ChatCompletionChunk
from schemas.chat_schema import ChatCompletionRequest, ChatMessage
from services import tracing
from services.chat import items
from services.chat.answer import encode, stored
from services.chat.events import Event, Head, head_of, reply_of
from services.chat.formats import chat_format
from services.chat.parsing.channels import events
from services.chat.request import prompt, sampling
from services.chat.request.encoding import MAX_TOKENIZE_CHARS
from services.chat.request.images import refs as image_refs
from services.chat.request.preparation_cache import PreparationCache
from services.chat.request.prepared import PreparedRequest, PromptInput, Target, prepare
from services.chat.request.refusals import ReportIgnored, report_nothing
from services.document_service import DocumentService
from services.engine.base import Engine, GrammarSpec, Job, Piece, SamplingDefaults
from services.errors import Overloaded, PromptTooLong, RateLimited, ServiceError, Stopped, Unavailable
from services.history.idempotency import IdempotencyKey
from services.history.progress import Progress
from services.history.replay import Replay
from services.history.turn import Facts, Turn, TurnRequest
from services.history.usage import UsageMeter
from services.image_service import ImageService
from services.large import offload
from services.limit_service import UNLIMITED, Limiter, Reservation
from services.metrics_service import AnswerTimer, Metrics
from services.model_service import Lease, ModelManager
from services.text_service import TextService, characters
from services.trace_service import traced_chat
from services.turn_service import TurnService

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ChatContext:
    """What a chat completion is answered with, besides its request."""

    turn: Turn  # opened, not begun
    history: Sequence[ChatMessage] = ()  # in front of the request's messages
    facts: Facts | None = None  # stored with the answer; None: those of the request
    dropped_messages: int = 0
    cache: PreparationCache = field(default_factory=PreparationCache)
    progress: Progress | None = None  # of an answer that other processes can go on with; it has one choice


Start = Callable[[], AsyncGenerator[Event, None]]  # of a run; if it is refused it can be started again


@dataclass(frozen=True, slots=True)
class AdmittedRun:
    head: Head
    events: AsyncGenerator[Event, None]  # after the head


class ChatService:
    def __init__(
        self,
        models: ModelManager,
        turns: TurnService,
        metrics: Metrics,
        limits: Limiter = UNLIMITED,
        *,
        system_prompt: str | None = None,
        max_new_tokens: int | None = None,
        images: ImageService | None = None,
        documents: DocumentService | None = None,
        texts: TextService | None = None,
        max_tokenize_chars: int = MAX_TOKENIZE_CHARS,
    ) -> None:
        self._models = models
        self._turns = turns
        self._metrics = metrics
        self._limits = limits
        self._system_prompt = system_prompt
        self._max_new_tokens = max_new_tokens
        self._images = images or ImageService()
        self._documents = documents or DocumentService()
        self._texts = texts or TextService()
        self._max_tokenize_chars = max_tokenize_chars

    def unknown_keys(self, request: ChatCompletionRequest) -> list[str]:
        """Ignored parameters that do not depend on the model."""
        return prompt.unknown_keys(request)

    async def create(
        self,
        request: ChatCompletionRequest,
        owner: str,
        idempotency_key: IdempotencyKey | None = None,
        report_ignored: ReportIgnored = report_nothing,
    ) -> ChatCompletion:
        reply = await reply_of(await self._events(request, owner, idempotency_key, report_ignored))
        return encode.completion(reply, request.metadata, encode.chunk_options(request))

    async def stream(
        self,
        request: ChatCompletionRequest,
        owner: str,
        idempotency_key: IdempotencyKey | None = None,
        report_ignored: ReportIgnored = report_nothing,
    ) -> AsyncGenerator[ChatCompletionChunk, None]:
        """The first step raises the errors of the request; a chunk means that it was admitted."""
        encoder = encode.ChunkEncoder(encode.chunk_options(request))
        async with aclosing(await self._events(request, owner, idempotency_key, report_ignored)) as events:
            async for event in events:
                for chunk in encoder.chunks(event):
                    yield chunk
        for chunk in encoder.end():
            yield chunk

    async def _events(
        self,
        request: ChatCompletionRequest,
        owner: str,
        idempotency_key: IdempotencyKey | None,
        report_ignored: ReportIgnored,
    ) -> AsyncGenerator[Event, None]:
        """Of a new answer, or of the stored one if the request repeats a key."""
        if idempotency_key is None:
            return self.run(request, owner, report_ignored=report_ignored)
        await offload(self.check, request)
        opened = await self._turns.open(await offload(_turn_request, request, owner, idempotency_key))
        if isinstance(opened, Replay):
            return opened.events()
        return self.run(request, owner, ChatContext(opened, opened.history), report_ignored)

    def run(
        self,
        request: ChatCompletionRequest,
        owner: str,
        context: ChatContext | None = None,
        report_ignored: ReportIgnored = report_nothing,
    ) -> AsyncGenerator[Event, None]:
        """A Head, then the events of the answer. Without a context the request decides what is stored.

        `report_ignored` receives the names of parameters that this model does not use, before the Head.
        """
        return traced_chat(self._run(request, owner, context, report_ignored), request)

    async def _run(
        self,
        request: ChatCompletionRequest,
        owner: str,
        context: ChatContext | None,
        report_ignored: ReportIgnored,
    ) -> AsyncGenerator[Event, None]:
        arrived = time.perf_counter()
        grammar = await offload(self.check, request)
        context = context or await self._context(request, owner)
        async with self._models.lease(request.model) as model:
            timer = self._metrics.answer(model.id)
            request = sampling.apply_defaults(request, model.sampling)
            with tracing.step("prepare"):
                prepared = await self._prepare(request, owner, context, model, grammar, model.engine.max_length)
            report_ignored(prepared.ignored)
            submitted = time.perf_counter()
            meter, answer_tokens = UsageMeter(model.id), request.n * (_requested_tokens(request) or 0)
            async with (
                self._limits.reserved(model.id, len(prepared.prompt), answer_tokens) as reservation,
                _submitted(model, prepared.jobs, context.progress) as streams,
            ):
                context.cache.clear()  # the jobs have all that is needed of it
                head = _head(prepared, context, model, request, arrived=arrived, submitted=submitted)
                await context.turn.begin(head, await _facts(context, request))
                parsed = events(head, streams, [prompt.echo(request)] * request.n, prepared.output)
                async with _Recording(context.turn, timer, meter, reservation) as recording, aclosing(parsed):
                    async for event in parsed:
                        recording.add(event)
                        yield event

    async def _context(self, request: ChatCompletionRequest, owner: str) -> ChatContext:
        turn = await self._turns.new_turn(await offload(_turn_request, request, owner))
        return ChatContext(turn, turn.history)

    def check(self, request: ChatCompletionRequest) -> GrammarSpec | None:
        """Raises the errors that do not need the model, before it is loaded. Returns the grammar of the answer."""
        answer = prompt.check(request)
        self._models.check(request.model, "chat")
        return answer

    async def with_texts(self, messages: Sequence[ChatMessage], owner: str) -> list[ChatMessage]:
        """With the text of files in the place of their parts."""
        return await self._documents.read_messages(messages, owner)

    def model_name(self, name: str | None) -> str:
        """The name in the answer; raises ModelNotFound."""
        self._models.check(name, "chat")
        return name or self._models.default().name

    async def sampling(self, name: str | None, *, load: bool = False) -> SamplingDefaults:
        """Sampling defaults; those of a hub model may be known only after it is loaded (`load`)."""
        if not load:
            return await self._models.sampling(name)
        async with self._models.lease(name) as model:
            return model.sampling

    async def max_length(self, name: str | None) -> int:
        """Maximum tokens of prompt and answer together."""
        async with self._models.lease(name) as model:
            return int(model.engine.max_length)

    async def prompt_of(
        self,
        request: ChatCompletionRequest,
        owner: str,
        report_ignored: ReportIgnored = report_nothing,
        limit: int | None = None,
        cache: PreparationCache | None = None,
    ) -> tuple[int, ...]:
        """The prompt tokens. `limit`: raises PromptTooLong early for texts that must have far more."""
        grammar = await offload(prompt.check, request)
        turn_request = TurnRequest(owner=owner, conversation=request.conversation, item=request.parent_item)
        turn = await self._turns.new_turn(turn_request)
        context = ChatContext(turn, turn.history, cache=cache or PreparationCache())
        async with self._models.lease(request.model) as model:
            prepared = await self._prepare(request, owner, context, model, grammar, limit)
            report_ignored(prepared.ignored)
            return prepared.prompt

    async def count(self, request: ChatCompletionRequest, owner: str, cache: PreparationCache | None = None) -> int:
        """Tokens of the prompt. A prompt that must be far longer than the context is not tokenised, but estimated."""
        limit = await self.max_length(request.model)
        try:
            return len(await self.prompt_of(request, owner, limit=limit, cache=cache))
        except PromptTooLong as error:
            return error.tokens

    async def _prepare(
        self,
        request: ChatCompletionRequest,
        owner: str,
        context: ChatContext,
        model: Lease,
        grammar: GrammarSpec | None,
        limit: int | None,
    ) -> PreparedRequest:
        history = map(prompt.message, context.history)
        messages = await offload(prompt.messages, request, history, self._system_prompt)
        engine: Engine = model.engine
        target = Target(
            engine.tokenizer,
            chat_format(engine.tokenizer, model.dialect),
            engine.max_length,
            self._max_new_tokens,
            self._system_prompt,
            self._max_tokenize_chars,
        )
        messages = await self._documents.read(messages, len(request.messages), owner, context.cache.files)
        refs = image_refs(messages, len(request.messages))
        illustration = await self._images.illustration(refs, engine, owner, context.cache.images)
        prompt_input = PromptInput(messages, illustration, limit, context.cache)
        async with self._texts.room(characters(messages)):
            return await asyncio.to_thread(prepare, context.turn.id, request, prompt_input, target, owner, grammar)


@asynccontextmanager
async def _submitted(
    model: Lease, jobs: Sequence[Job], progress: Progress | None
) -> AsyncIterator[list[AsyncGenerator[Piece, None]]]:
    if progress is None:
        async with model.submitted(jobs) as streams:
            yield streams
        return
    remaining = progress.remaining(jobs, resumes=getattr(model.engine, "resumes", False))
    async with model.submitted(remaining) as streams:
        yield progress.pieces(streams)


class _Recording:
    """Records events in a turn, and finishes the turn however the events end."""

    def __init__(self, turn: Turn, timer: AnswerTimer, meter: UsageMeter, reservation: Reservation) -> None:
        self._reservation = reservation
        self._turn = turn
        self._timer = timer
        self._meter = meter

    def add(self, event: Event) -> None:
        self._timer.add(event)
        self._meter.add(event)
        self._turn.add(event)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._timer.end()
        usage = self._meter.usage(failed=isinstance(error, Exception) and not isinstance(error, Stopped))
        self._reservation.used = usage.counts.tokens
        await _finish_turn(self._turn, error if isinstance(error, ServiceError) else None, usage)


async def started(run: AsyncGenerator[Event, None]) -> AdmittedRun:
    """Raises the errors of the request."""
    return AdmittedRun(await head_of(run), run)


async def admitted(start: Start) -> AdmittedRun:
    """For requests that must not fail with 429."""
    return await retried(lambda: started(start()))


async def retried(attempt: Callable[[], Awaitable[T]]) -> T:
    """Tries again while the server is overloaded, or the key at a limit of a minute."""
    while True:
        try:
            return await attempt()
        except (Overloaded, RateLimited) as overload:
            await asyncio.sleep(overload.retry_after)


@asynccontextmanager
async def finishing(turn: Turn) -> AsyncIterator[None]:
    """Finishes the turn on every path."""
    error: ServiceError | None = None
    try:
        yield
    except ServiceError as raised:
        error = raised
        raise
    finally:
        await _finish_turn(turn, error)


async def _finish_turn(turn: Turn, error: ServiceError | None, usage: Usage | None = None) -> None:
    """Finishes a turn, also if the caller is cancelled meanwhile; does nothing if it is finished."""
    await _shielded(_finish(turn, error, usage))


async def _finish(turn: Turn, error: ServiceError | None, usage: Usage | None) -> None:
    try:
        await turn.finish(error, usage)
    except Unavailable as unavailable:  # the answer was delivered; the turn keeps its result until it can be written
        logger.warning("%s; answer %s will be stored later", unavailable.message, turn.id)


async def _shielded(write: Coroutine[Any, Any, None]) -> None:
    """Awaits a write that must complete; a cancelled caller returns at once while the write continues."""
    task = asyncio.ensure_future(write)
    _writes.add(task)
    task.add_done_callback(_writes.discard)
    await asyncio.shield(task)


_writes: set[asyncio.Future[None]] = set()  # the event loop keeps only weak references to tasks


def _turn_request(
    request: ChatCompletionRequest, owner: str, idempotency_key: IdempotencyKey | None = None
) -> TurnRequest:
    return TurnRequest(
        owner=owner,
        input=items.from_messages(request.messages),
        conversation=request.conversation,
        item=request.parent_item,
        stored=request.store,
        cache_key=request.prompt_cache_key,
        metadata=request.metadata,
        idempotency_key=idempotency_key,
    )


def _requested_tokens(request: ChatCompletionRequest) -> int | None:
    return request.max_completion_tokens or request.max_tokens


async def _facts(context: ChatContext, request: ChatCompletionRequest) -> Facts:
    return await offload(stored.request_facts, request) if context.facts is None else context.facts


def _head(
    prepared: PreparedRequest,
    context: ChatContext,
    model: Lease,
    request: ChatCompletionRequest,
    *,
    arrived: float,
    submitted: float,
) -> Head:
    return Head(
        id=context.turn.id,
        created=int(context.turn.created_at),
        model=model.name,
        fingerprint=model.fingerprint,
        conversation_id=context.turn.conversation_id,
        arrived=arrived,
        submitted=submitted,
        prompt_tokens=len(prepared.prompt),
        truncated=prepared.truncated,
        service_tier=prompt.served_tier(request.service_tier),
        n=request.n,
        dropped_messages=context.dropped_messages,
    )
