"""Responses: one pipeline with chat, of which the stream is the truth and the plain answer its last event."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from schemas.response_answer_schema import Response, ResponseEvent, StreamEvent
from schemas.response_schema import ResponseInput, ResponseRequest
from schemas.tokenize_schema import InputTokens
from services.chat import items
from services.chat.answer.reasoning_output import ReasoningOutput
from services.chat.answer.response_events import ResponseEncoder, stream_event
from services.chat.compaction.window import Chat
from services.chat.events import Event, Finish, Head
from services.chat.items import Item
from services.chat.request import responses
from services.chat.request.fitting import left_out, shortened
from services.chat.request.refusals import ReportIgnored, report_nothing
from services.chat.request.sampling import apply_defaults
from services.chat_service import ChatContext, ChatService, Start, admitted, finishing, retried
from services.compaction_service import CompactionService
from services.errors import PromptTooLong, ServiceError
from services.history.background_stream import BackgroundStream
from services.history.idempotency import IdempotencyKey
from services.history.progress import Progress
from services.history.replay import Replay
from services.history.turn import Turn, TurnRequest
from services.input_service import InputService
from services.large import offload
from services.parameter_names import translate_errors
from services.responses.context import ResponseContext
from services.secret_service import SecretService
from services.stored_response_service import KIND, StoredResponseService
from services.stream_service import StreamService
from services.turn_service import Claimed, TurnService

OpenContext = Callable[[], Awaitable[ResponseContext]]


@dataclass(frozen=True, slots=True)
class AnswerRun:
    context: ResponseContext
    events: AsyncGenerator[Event, None]

    def encode(self, event: Event, encoder: ResponseEncoder) -> list[ResponseEvent]:
        return encoder.begin(self.context.response(event)) if isinstance(event, Head) else encoder.add(event)

    @property
    def completed_at(self) -> float:
        return self.context.source.completed_at or time.time()


class ResponseService:
    def __init__(
        self,
        chat: ChatService,
        turns: TurnService,
        streams: StreamService,
        stored: StoredResponseService,
        secrets: SecretService,
        inputs: InputService,
        compactions: CompactionService,
        is_left_to_others: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_left_to_others`: whether background answers wait for a process with room."""
        self._chat = chat
        self._turns = turns
        self._streams = streams
        self._stored = stored
        self._secrets = secrets
        self._inputs = inputs
        self._compactions = compactions
        self.is_left_to_others = is_left_to_others

    def unknown_keys(self, request: ResponseInput) -> list[str]:
        """What is left aside of it, whatever its model."""
        return responses.unknown_keys(request)

    async def create(
        self,
        request: ResponseRequest,
        owner: str,
        idempotency_key: IdempotencyKey | None = None,
        report_ignored: ReportIgnored = report_nothing,
    ) -> Response:
        context = await self._open(request, owner, idempotency_key, report_ignored)
        if request.background:
            return await self._start(context)
        encoder = context.encoder()
        with translate_errors(responses.translated):
            answer = await self._answer(context)
            async with aclosing(answer.events) as events:
                async for event in events:
                    answer.encode(event, encoder)
        encoder.end(answer.completed_at)
        return encoder.response

    def stream(
        self,
        request: ResponseRequest,
        owner: str,
        idempotency_key: IdempotencyKey | None = None,
        report_ignored: ReportIgnored = report_nothing,
    ) -> AsyncGenerator[StreamEvent, None]:
        """The first step raises refusals; a later failure is the last event."""
        open_context = partial(self._open, request, owner, idempotency_key, report_ignored)
        if request.background:
            return self._stored.follow(partial(self._begin, open_context), owner)
        return self._stream(open_context)

    async def _stream(self, open_context: OpenContext) -> AsyncGenerator[StreamEvent, None]:
        context = await open_context()
        encoder = context.encoder()
        try:
            with translate_errors(responses.translated):
                answer = await self._answer(context)
                async with aclosing(answer.events) as events:
                    async for event in events:
                        for each in answer.encode(event, encoder):
                            yield stream_event(each)
            for each in encoder.end(answer.completed_at):
                yield stream_event(each)
        except ServiceError as error:
            if not encoder.has_begun:
                raise
            for each in encoder.fail(error):
                yield stream_event(each)

    async def _open(
        self,
        request: ResponseRequest,
        owner: str,
        idempotency_key: IdempotencyKey | None,
        report_ignored: ReportIgnored,
    ) -> ResponseContext:
        """Checks everything that can be checked before a model is loaded."""
        responses.check(request)
        self._chat.model_name(request.model)
        own = await self._inputs.items(request, owner, report_ignored)
        source = await self._turns.open(_turn_request(request, owner, own, idempotency_key))
        return await self._context(request, owner, own, source, report_ignored)

    async def _context(
        self,
        request: ResponseRequest,
        owner: str,
        own: Sequence[Item],
        source: Turn | Replay,
        report_ignored: ReportIgnored,
    ) -> ResponseContext:
        """`own`: the input's items. Checks what depends on the history."""
        context = ResponseContext(
            apply_defaults(request, await self._chat.sampling(request.model)),
            owner,
            source,
            await offload(items.to_messages, own, source.history),
            self._chat.model_name(request.model),
            await self._reasoning(request, owner),
            responses.translate_report(report_ignored),
        )
        with translate_errors(responses.translated):
            await offload(lambda: self._chat.check(responses.as_chat(request, context.messages)))
        return context

    async def _reasoning(self, request: ResponseRequest, owner: str) -> ReasoningOutput:
        summary = request.reasoning.summary_mode if request.reasoning else None
        seal = await self._secrets.seal(owner) if responses.ENCRYPTED_REASONING in request.include else None
        return ReasoningOutput(summary, seal.closing("reasoning") if seal else None)

    async def _answer(self, context: ResponseContext) -> AnswerRun:
        source = context.source
        if isinstance(source, Replay):
            return AnswerRun(context, source.events())
        context = await self._with_model_defaults(context)
        start = await self._plan(context, source)
        return AnswerRun(context, start())

    async def _with_model_defaults(self, context: ResponseContext) -> ResponseContext:
        """The defaults of a model may be known only once it is loaded."""
        return context.with_defaults(await self._chat.sampling(context.request.model, load=True))

    async def _plan(self, context: ResponseContext, turn: Turn) -> Start:
        """Decides which of the messages are answered, and what a compaction or truncation makes of the others."""
        return await self._compactions.plan(context, turn, partial(self._complete, context, turn))

    async def _complete(self, context: ResponseContext, turn: Turn, messages: Chat) -> Start:
        """The chat completion that answers these messages."""
        fitting = await self._fitting(context, messages)
        num_dropped = len(messages) - len(fitting)
        chat = await offload(responses.as_chat, context.request, fitting, left_out(messages, fitting))
        chat_context = ChatContext(
            turn, (), context.facts(num_dropped), num_dropped, context.cache, progress=context.progress
        )
        return partial(self._chat.run, chat, context.owner, chat_context, context.report_ignored)

    async def _fitting(self, context: ResponseContext, messages: Chat) -> Chat:
        """With truncation, leaves a quarter of the context length to the answer, or its token limit."""
        if context.request.truncation != "auto":
            return messages
        length = await self._chat.max_length(context.request.model)
        room = responses.room(context.request, length)
        sizes: list[int] = []

        async def fits(kept: Chat) -> bool:
            chat = await offload(responses.as_chat, context.request, kept, left_out(messages, kept))
            sizes.append(await self._chat.count(chat, context.owner, context.cache))
            return sizes[-1] + room <= length

        fitting = await shortened(messages, fits)
        if fitting is None:
            raise PromptTooLong(min(sizes), length, param="messages")
        return fitting

    # --- in the background ---

    async def _begin(self, open_context: OpenContext) -> str:
        context = await open_context()
        await self._start(context)
        return context.source.id

    async def _start(self, context: ResponseContext) -> Response:
        turn = context.source
        if isinstance(turn, Replay):
            return await self._stored.get(turn.id, context.owner, context.request.include)
        queued = context.response()
        can_be_claimed = not (responses.compacts(context.request) or responses.is_triggered(context.request))
        body = context.request.model_dump(mode="json", exclude_unset=True) if can_be_claimed else None
        starts_here = body is None or not self.is_left_to_others()
        await turn.queue(queued.model, context.facts(), body, claimed=starts_here)
        if starts_here:
            self._begin_stream(context, turn, Progress(is_claimable=body is not None))
        else:
            await self._streams.store(turn.id, [*map(stream_event, context.encoder().queue())])
        return queued

    async def go_on(self, claimed: Claimed) -> None:
        """With the answer of another process, or with one that waited for a process with room."""
        request = ResponseRequest.model_validate(claimed.body)
        own = await self._inputs.items(request, claimed.owner, report_nothing)
        context = await self._context(request, claimed.owner, own, claimed.turn, report_nothing)
        progress = await self._streams.progress(claimed.turn.id, claimed.attempt)
        self._begin_stream(context, claimed.turn, progress)

    def _begin_stream(self, context: ResponseContext, turn: Turn, progress: Progress) -> None:
        context = replace(context, progress=progress)
        encoder = context.encoder()

        def closing_events(error: ServiceError, number: int) -> Iterator[StreamEvent]:
            return map(stream_event, encoder.fail(error))

        generated = self._generate(context, turn, encoder)
        stream = BackgroundStream(generated, context.owner, closing_events, progress=progress)
        self._streams.register(turn.id, stream)

    async def _generate(
        self, context: ResponseContext, turn: Turn, encoder: ResponseEncoder
    ) -> AsyncGenerator[StreamEvent, None]:
        async with finishing(turn):  # also if it is never admitted
            for each in encoder.queue():
                yield stream_event(each)
            with translate_errors(responses.translated):
                context = await self._with_model_defaults(context)
                run = await admitted(await retried(partial(self._plan, context, turn)))
                answer = AnswerRun(context, run.events)
                async with aclosing(answer.events) as events:
                    for each in answer.encode(run.head, encoder):
                        yield stream_event(each)
                    async for event in events:
                        for each in answer.encode(event, encoder):
                            yield stream_event(each)
                        if isinstance(event, Finish):  # the turn ends behind it: nobody would go on with the stream
                            await self._streams.saved(turn.id)
            for each in encoder.end(answer.completed_at):
                yield stream_event(each)

    async def count(
        self, request: ResponseInput, owner: str, report_ignored: ReportIgnored = report_nothing
    ) -> InputTokens:
        responses.check(request)
        messages = await self._inputs.messages(request, owner, report_ignored)
        with translate_errors(responses.translated):
            chat = await offload(responses.as_chat, request, messages)
            prompt = await self._chat.prompt_of(chat, owner, responses.translate_report(report_ignored))
        return InputTokens(input_tokens=len(prompt))


def _turn_request(
    request: ResponseRequest, owner: str, own: Sequence[Item], idempotency_key: IdempotencyKey | None
) -> TurnRequest:
    return TurnRequest(
        owner=owner,
        kind=KIND,
        input=own,
        conversation=request.conversation,
        item=request.parent_item,
        previous=request.previous_response_id,
        stored=request.store,
        cache_key=request.prompt_cache_key,
        instructions=request.instructions,
        background=request.background,
        logprobs=responses.LOGPROBS in request.include,
        metadata=request.metadata,
        idempotency_key=idempotency_key,
    )
