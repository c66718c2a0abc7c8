"""Chat completions: one pipeline, of which the stream is the truth and the plain answer the fold.

One thing differs from the order of the house rules: the request is admitted by the engine before the user's items are
written, so that a refused request (429, 503, a prompt too long) leaves nothing behind, and a retry is not stored twice.
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
        """What is left aside of it, whatever its model."""
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
        """Refusals are raised by the first step; once a chunk has come, the request was admitted."""
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
        """A Head, then what is said. Who has opened a turn for it says what is remembered, else the request does.

        `report_ignored` is given the names of the parameters that this model has no use for, before the Head comes.
        """
        arrived = time.perf_counter()
        answer = await offload(self.check, request)
        facts = await offload(stored.request_facts, request)
        turn = turn or await self._turns.open(await offload(_turn_request, request, owner, idempotency_key, facts))
        if isinstance(turn, ReplayedTurn):
            async for event in turn.events():
                yield event
            return
        async with self._models.lease(request.model) as model:
            timer = self._metrics.answer(model.id)
            request = sampling.apply_defaults(request, model.sampling)
            facts.update(await offload(stored.request_facts, request))
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
        """Refuses what can be refused without a model, before a load is waited for. Returns the answer's grammar."""
        answer = prompt.check(request)
        self._models.check(request.model, "chat")
        return answer

    def model_name(self, name: str | None) -> str:
        """As an answer will call it; raises ModelNotFound."""
        self._models.check(name, "chat")
        return name or self._models.default().name

    async def sampling(self, name: str | None, *, load: bool = False) -> SamplingDefaults:
        """What holds where a request names nothing; of a hub's model it may be known only once that is loaded."""
        if not load:
            return await self._models.sampling(name)
        async with self._models.lease(name) as model:
            return model.sampling

    async def max_length(self, name: str | None) -> int:
        """Tokens of prompt and answer together."""
        async with self._models.lease(name) as model:
            return int(model.engine.max_length)

    async def prompt_of(
        self,
        request: ChatCompletionRequest,
        owner: str,
        report_ignored: ReportIgnored = report_nothing,
        limit: int | None = None,
    ) -> tuple[int, ...]:
        """The tokens that would be submitted. `limit`: far more of them need not be found, but are PromptTooLong."""
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
    """Settles a turn however its events end: whole, or with what came until they broke."""

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
    """Waits until there is room: for requests that are not to be refused for want of it."""
    while True:
        try:
            async with aclosing(run()) as events:
                async for event in events:
                    yield event
            return
        except Overloaded as busy:
            await asyncio.sleep(busy.retry_after)


async def finish_turn(turn: Turn, error: ServiceError | None) -> None:
    """Its end, whoever is cancelled meanwhile; nothing where it has had one."""
    await _unbroken(_finish(turn, error))


async def _finish(turn: Turn, error: ServiceError | None) -> None:
    try:
        await turn.finish(error)
    except Unavailable as unavailable:  # the answer was given; the turn keeps its outcome until it can be written
        logger.warning("%s; answer %s will be stored later", unavailable.message, turn.id)


async def _unbroken(write: Coroutine[Any, Any, None]) -> None:
    """Awaits what must not be left half done; a cancelled caller leaves at once, the write goes on."""
    task = asyncio.ensure_future(write)
    _writes.add(task)
    task.add_done_callback(_writes.discard)
    await asyncio.shield(task)


_writes: set[asyncio.Future[None]] = set()  # the event loop itself holds its tasks only weakly


def _turn_request(
    request: ChatCompletionRequest, owner: str, idempotency_key: IdempotencyKey | None, facts: Mapping[str, Any]
) -> TurnRequest:
    """`facts`: what is stored of the request when it is admitted."""
    return TurnRequest(
        owner=owner,
        input=items.from_messages(request.messages),
        conversation=request.conversation,
        item=request.parent_item,
        stored=request.store,
        parameters=facts,
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
