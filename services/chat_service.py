"""Chat completions: one pipeline of events; a plain answer is the fold of the stream.

The engine admits a request before its input items are written, so that a rejected request (429, 503, a prompt that is
too long) leaves nothing behind, and a retry is not stored twice.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Self, TypeVar

from schemas.chat_answer_schema import ChatCompletion, ChatCompletionChunk
from schemas.chat_schema import ChatCompletionRequest
from services.chat import items
from services.chat.answer import encode, stored
from services.chat.events import Event, Head, Reply
from services.chat.formats import chat_format_of
from services.chat.parsing.channels import events
from services.chat.request import prompt, sampling
from services.chat.request.encoding import MAX_TOKENIZE_CHARS
from services.chat.request.images import refs as image_refs
from services.chat.request.prepared import PreparedRequest, PromptInput, Target, prepare
from services.chat.request.refusals import ReportIgnored, report_nothing
from services.engine.base import Engine, GrammarSpec, SamplingDefaults
from services.errors import Overloaded, ServiceError, Unavailable
from services.history.idempotency import IdempotencyKey
from services.history.replayed_turn import ReplayedTurn
from services.history.turn import Turn, TurnRequest
from services.image_service import ImageService
from services.large import offload
from services.metrics_service import AnswerTimer, Metrics
from services.model_service import Lease, ModelManager
from services.text_service import TextService, characters
from services.turn_service import TurnService

logger = logging.getLogger(__name__)

T = TypeVar("T")


class ChatService:
    def __init__(
        self,
        models: ModelManager,
        turns: TurnService,
        metrics: Metrics,
        *,
        system_prompt: str | None = None,
        max_new_tokens: int | None = None,
        images: ImageService | None = None,
        texts: TextService | None = None,
        max_tokenize_chars: int = MAX_TOKENIZE_CHARS,
    ) -> None:
        self._models = models
        self._turns = turns
        self._metrics = metrics
        self._system_prompt = system_prompt
        self._max_new_tokens = max_new_tokens
        self._images = images or ImageService()
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
        reply = await self.whole(request, owner, idempotency_key=idempotency_key, report_ignored=report_ignored)
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
        async with aclosing(
            self.run(request, owner, idempotency_key=idempotency_key, report_ignored=report_ignored)
        ) as run:
            async for event in run:
                for chunk in encoder.chunks(event):
                    yield chunk
        for chunk in encoder.end():
            yield chunk

    async def whole(
        self,
        request: ChatCompletionRequest,
        owner: str,
        turn: Turn | None = None,
        idempotency_key: IdempotencyKey | None = None,
        report_ignored: ReportIgnored = report_nothing,
    ) -> Reply:
        reply = Reply()
        async with aclosing(self.run(request, owner, turn, idempotency_key, report_ignored)) as run:
            async for event in run:
                reply.add(event)
        return reply

    async def run(
        self,
        request: ChatCompletionRequest,
        owner: str,
        turn: Turn | None = None,
        idempotency_key: IdempotencyKey | None = None,
        report_ignored: ReportIgnored = report_nothing,
    ) -> AsyncGenerator[Event, None]:
        """A Head, then the events of the answer. `turn`: opened by the caller; by default the request determines it.

        `report_ignored` receives the names of parameters that this model does not use, before the Head.
        """
        arrived = time.perf_counter()
        answer = await offload(self.check, request)
        parameters = await offload(stored.request_facts, request)
        turn = turn or await self._turns.open(await offload(_turn_request, request, owner, idempotency_key, parameters))
        if isinstance(turn, ReplayedTurn):
            async for event in turn.events():
                yield event
            return
        async with self._models.lease(request.model) as model:
            timer = self._metrics.answer(model.id)
            request = sampling.apply_defaults(request, model.sampling)
            parameters.update(await offload(stored.request_facts, request))
            prepared = await self._prepare(request, owner, turn, model, answer, model.engine.max_length)
            report_ignored(prepared.ignored)
            async with model.submitted(prepared.jobs) as streams:
                head = _head(prepared, turn, model, arrived, request)
                await turn.begin(head)
                parsed = events(head, streams, [prompt.echo(request)] * request.n, prepared.output)
                async with _Recording(turn, timer) as recording, aclosing(parsed):
                    async for event in parsed:
                        recording.add(event)
                        yield event

    def check(self, request: ChatCompletionRequest) -> GrammarSpec | None:
        """Raises the errors that do not need the model, before it is loaded. Returns the grammar of the answer."""
        answer = prompt.check(request)
        self._models.check(request.model, "chat")
        return answer

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
    ) -> tuple[int, ...]:
        """The prompt tokens. `limit`: raises PromptTooLong early for texts that must have far more."""
        answer = await offload(prompt.check, request)
        turn_request = TurnRequest(owner=owner, conversation=request.conversation, item=request.parent_item)
        turn = await self._turns.open(turn_request)
        async with self._models.lease(request.model) as model:
            prepared = await self._prepare(request, owner, turn, model, answer, limit)
            report_ignored(prepared.ignored)
            return prepared.prompt

    async def _prepare(
        self,
        request: ChatCompletionRequest,
        owner: str,
        turn: Turn,
        model: Lease,
        answer: GrammarSpec | None,
        limit: int | None,
    ) -> PreparedRequest:
        history = map(prompt.message, turn.history)
        messages = await offload(prompt.messages, request, history, self._system_prompt)
        engine: Engine = model.engine
        target = Target(
            engine.tokenizer,
            chat_format_of(engine.tokenizer.chat_template, model.dialect),
            engine.max_length,
            self._max_new_tokens,
            self._system_prompt,
            self._max_tokenize_chars,
        )
        illustration = await self._images.illustration(image_refs(messages, len(request.messages)), engine, owner)
        given = PromptInput(messages, illustration, limit)
        async with self._texts.room(characters(messages)):
            return await asyncio.to_thread(prepare, turn.id, request, given, target, owner, answer)


class _Recording:
    """Records events in a turn, and finishes the turn however the events end."""

    def __init__(self, turn: Turn, timer: AnswerTimer) -> None:
        self._turn = turn
        self._timer = timer

    def add(self, event: Event) -> None:
        self._timer.add(event)
        self._turn.add(event)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._timer.end()
        await finish_turn(self._turn, error if isinstance(error, ServiceError) else None)


async def retry_overloads(run: Callable[[], AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """Retries while the engine is overloaded, for requests that must not fail with 429."""
    while True:
        try:
            async with aclosing(run()) as events:
                async for event in events:
                    yield event
            return
        except Overloaded as busy:
            await asyncio.sleep(busy.retry_after)


async def finish_turn(turn: Turn, error: ServiceError | None) -> None:
    """Finishes a turn, also if the caller is cancelled meanwhile; does nothing if it is finished."""
    await _shielded(_finish(turn, error))


async def _finish(turn: Turn, error: ServiceError | None) -> None:
    try:
        await turn.finish(error)
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
    request: ChatCompletionRequest, owner: str, idempotency_key: IdempotencyKey | None, parameters: Mapping[str, Any]
) -> TurnRequest:
    """`parameters`: stored with the answer."""
    return TurnRequest(
        owner=owner,
        input=items.from_messages(request.messages),
        conversation=request.conversation,
        item=request.parent_item,
        stored=request.store,
        parameters=parameters,
        metadata=request.metadata,
        idempotency_key=idempotency_key,
    )


def _head(prepared: PreparedRequest, turn: Turn, model: Lease, arrived: float, request: ChatCompletionRequest) -> Head:
    return Head(
        id=turn.id,
        created=int(turn.created_at),
        model=model.name,
        fingerprint=model.fingerprint,
        conversation_id=turn.conversation_id,
        arrived=arrived,
        prompt_tokens=len(prepared.prompt),
        truncated=prepared.truncated,
        service_tier=prompt.served_tier(request.service_tier),
        n=request.n,
    )
