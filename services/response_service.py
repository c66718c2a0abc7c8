"""Responses: one pipeline with chat, of which the stream is the truth and the plain answer its last event."""

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from schemas.chat_schema import ChatCompletionRequest
from schemas.response_answer_schema import Response, ResponseEvent, StreamEvent
from schemas.response_schema import ResponseInput, ResponseRequest
from schemas.tokenize_schema import InputTokens
from services.chat import items
from services.chat.answer.encode import conversation_ref
from services.chat.answer.output import OutputItems
from services.chat.answer.reasoning_output import ReasoningOutput
from services.chat.answer.response_events import ResponseEncoder, response_events, stream_event
from services.chat.events import Event, head_of
from services.chat.request import responses
from services.chat.request.fitting import Chat, shortened
from services.chat.request.refusals import ReportIgnored, report_nothing
from services.chat.request.sampling import apply_defaults
from services.chat_service import ChatService, finish_turn, retry_overloads
from services.compaction_service import CompactionService
from services.errors import PromptTooLong, ServiceError
from services.history.background_stream import BackgroundStream
from services.history.idempotency import IdempotencyKey
from services.history.replayed_turn import ReplayedTurn
from services.history.turn import Turn, TurnRequest
from services.input_service import InputService
from services.large import offload
from services.parameter_names import translate_errors
from services.secret_service import SecretService
from services.stored_response_service import KIND, StoredResponseService
from services.stream_service import StreamService
from services.turn_service import TurnService


@dataclass(slots=True)
class Asked:
    """A request on its way to its answer."""

    request: ResponseRequest
    owner: str
    turn: Turn
    messages: Chat
    encoder: ResponseEncoder
    facts: dict[str, Any]  # what is stored of the request when it is admitted
    report_ignored: ReportIgnored

    def chat(self) -> ChatCompletionRequest:
        return responses.as_chat(self.request, self.messages)


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
    ) -> None:
        self._chat = chat
        self._turns = turns
        self._streams = streams
        self._stored = stored
        self._secrets = secrets
        self._inputs = inputs
        self._compactions = compactions

    def unknown_keys(self, request: ResponseInput) -> list[str]:
        """What is left aside of it, whatever its model."""
        return responses.unknown_keys(request)

    # --- asking ---

    async def create(
        self,
        request: ResponseRequest,
        owner: str,
        idempotency_key: IdempotencyKey | None = None,
        report_ignored: ReportIgnored = report_nothing,
    ) -> Response:
        asked = await self._open(request, owner, idempotency_key, report_ignored)
        if request.background:
            return await self._begin(asked)
        async with aclosing(self._events(asked)) as events:
            async for _ in events:
                pass
        return asked.encoder.response

    async def stream(
        self,
        request: ResponseRequest,
        owner: str,
        idempotency_key: IdempotencyKey | None = None,
        report_ignored: ReportIgnored = report_nothing,
    ) -> AsyncGenerator[StreamEvent, None]:
        """Refusals are raised by the first step; what breaks after it is told by the last event."""
        asked = await self._open(request, owner, idempotency_key, report_ignored)
        if request.background:
            await self._begin(asked)
        events = self._stored.follow(asked.turn.id, owner, -1) if request.background else self._told(asked)
        async with aclosing(events):
            async for event in events:
                yield event

    async def _open(
        self,
        request: ResponseRequest,
        owner: str,
        idempotency_key: IdempotencyKey | None,
        report_ignored: ReportIgnored,
    ) -> Asked:
        """Checks all that can be told before a model is asked."""
        responses.check(request)
        model = self._chat.model_name(request.model)
        begun = responses.initial_response(apply_defaults(request, await self._chat.sampling(request.model)), model)
        own = await self._inputs.items(request, owner, report_ignored)
        facts = begun.model_dump(include=responses.REQUEST_FACTS)
        turn_request = TurnRequest(
            owner=owner,
            kind=KIND,
            input=own,
            conversation=request.conversation,
            previous=request.previous_response_id,
            stored=request.store,
            background=request.background,
            logprobs=responses.LOGPROBS in request.include,
            parameters=facts,
            metadata=request.metadata,
            idempotency_key=idempotency_key,
        )
        turn = await self._turns.open(turn_request)
        begun.id, begun.created_at, begun.conversation = (
            turn.id,
            int(turn.created_at),
            conversation_ref(turn.conversation_id),
        )
        output = OutputItems(turn.reply_id, logprobs=responses.LOGPROBS in request.include)
        messages = await offload(items.to_messages, own, turn.history)
        turn.history = ()  # it is part of the messages, and cut with them
        thoughts = await self._thoughts(request, owner)
        encoder = ResponseEncoder(begun, output, lambda: turn.completed_at or time.time(), thoughts)
        asked = Asked(request, owner, turn, messages, encoder, facts, responses.translate_report(report_ignored))
        with translate_errors(responses.translated):
            await offload(lambda: self._chat.check(asked.chat()))
        return asked

    async def _thoughts(self, request: ResponseRequest, owner: str) -> ReasoningOutput:
        """The form in which they are answered."""
        summary = request.reasoning.summary_mode if request.reasoning else None
        seal = await self._secrets.seal(owner) if responses.ENCRYPTED_REASONING in request.include else None
        return ReasoningOutput(summary, seal.closing("reasoning") if seal else None)

    # --- answering ---

    async def _events(self, asked: Asked) -> AsyncGenerator[ResponseEvent, None]:
        async with aclosing(self._run(asked)) as run:
            head = await head_of(run)
            asked.encoder.response.model = head.model
            if not asked.encoder.has_begun:
                yield asked.encoder.created()
            async for event in response_events(asked.encoder, run):
                yield event

    async def _run(self, asked: Asked) -> AsyncGenerator[Event, None]:
        with translate_errors(responses.translated):
            await self._settle(asked)
            async with aclosing(await self._steps(asked)) as steps:
                async for event in steps:
                    yield event

    async def _steps(self, asked: Asked) -> AsyncGenerator[Event, None]:
        answer = partial(self._answer, asked)
        if isinstance(asked.turn, ReplayedTurn):
            return answer(asked.messages)
        return await self._compactions.run(asked.request, asked.messages, asked.owner, asked.turn, answer)

    async def _answer(self, asked: Asked, messages: Chat) -> AsyncGenerator[Event, None]:
        asked.messages = messages
        if asked.request.truncation == "auto":
            await self._shorten(asked)
        chat = await offload(asked.chat)
        async with aclosing(self._chat.run(chat, asked.owner, asked.turn, report_ignored=asked.report_ignored)) as run:
            async for event in run:
                yield event

    async def _settle(self, asked: Asked) -> None:
        """What holds where the request names nothing is certain once the model is there."""
        if isinstance(asked.turn, ReplayedTurn):
            return
        asked.request = apply_defaults(asked.request, await self._chat.sampling(asked.request.model, load=True))
        begun = responses.initial_response(asked.request, asked.encoder.response.model)
        asked.encoder.response.temperature, asked.encoder.response.top_p = begun.temperature, begun.top_p
        asked.facts.update(begun.model_dump(include={"temperature", "top_p"}))

    async def _shorten(self, asked: Asked) -> None:
        """Leaves a quarter of the context to the answer, or what was asked for it."""
        length = await self._chat.max_length(asked.request.model)
        room = responses.room(asked.request, length)

        sizes: list[int] = []

        async def fits(messages: Chat) -> bool:
            chat = responses.as_chat(asked.request, messages)
            try:
                sizes.append(len(await self._chat.prompt_of(chat, asked.owner, limit=length)))
            except PromptTooLong as error:
                sizes.append(error.tokens)
            return sizes[-1] + room <= length

        if (kept := await shortened(asked.messages, fits)) is None:
            raise PromptTooLong(min(sizes), length, param="messages")
        asked.encoder.response.dropped_messages = len(asked.messages) - len(kept)
        asked.facts["dropped_messages"] = asked.encoder.response.dropped_messages
        asked.messages = kept

    async def _told(self, asked: Asked) -> AsyncGenerator[StreamEvent, None]:
        try:
            async with aclosing(self._events(asked)) as events:
                async for event in events:
                    yield stream_event(event)
        except ServiceError as error:
            if not asked.encoder.has_begun:
                raise
            for event in asked.encoder.failed(error):
                yield stream_event(event)

    # --- answering in the background ---

    async def _begin(self, asked: Asked) -> Response:
        if isinstance(asked.turn, ReplayedTurn):
            return await self._stored.get(asked.turn.id, asked.owner, asked.request.include)
        queued = asked.encoder.response.model_copy()
        await asked.turn.queue(queued.model)

        def ended(error: ServiceError, number: int) -> Iterator[StreamEvent]:
            return map(stream_event, asked.encoder.failed(error))

        self._streams.register(asked.turn.id, BackgroundStream(self._background(asked), asked.owner, ended))
        return queued

    async def _background(self, asked: Asked) -> AsyncGenerator[StreamEvent, None]:
        yield stream_event(asked.encoder.created())
        yield stream_event(asked.encoder.queued())
        error: ServiceError | None = None
        try:
            async with aclosing(retry_overloads(partial(self._events, asked))) as events:
                async for event in events:
                    yield stream_event(event)
        except ServiceError as raised:
            error = raised
            raise
        finally:
            await finish_turn(asked.turn, error)  # where it was never admitted

    async def count(
        self, request: ResponseInput, owner: str, report_ignored: ReportIgnored = report_nothing
    ) -> InputTokens:
        responses.check(request)
        own = await self._inputs.items(request, owner, report_ignored)
        turn_request = TurnRequest(
            owner=owner, kind=KIND, conversation=request.conversation, previous=request.previous_response_id
        )
        history = (await self._turns.open(turn_request)).history
        with translate_errors(responses.translated):
            chat = responses.as_chat(request, items.to_messages(own, history))
            return InputTokens(
                input_tokens=len(await self._chat.prompt_of(chat, owner, responses.translate_report(report_ignored)))
            )
