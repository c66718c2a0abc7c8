"""Conversations that have become too long, compacted: because a client asks for it, or before an answer goes on."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from uuid import uuid4

from schemas.response_answer_schema import CompactedResponse
from schemas.response_schema import CompactRequest, ResponseRequest
from services.chat import items
from services.chat.answer.response_events import usage
from services.chat.compaction.item import shown
from services.chat.compaction.plan import Plan
from services.chat.compaction.window import Chat
from services.chat.events import Compacted, Compacting, Event, Finish, Head
from services.chat.items import Item
from services.chat.request import responses
from services.chat.request.refusals import ReportIgnored, report_nothing
from services.chat_service import ChatService, finish_turn, retry_overloads
from services.compaction_plan_service import CompactionPlanService
from services.errors import ServiceError
from services.history.item_rows import with_defaults
from services.history.turn import Turn, TurnRequest
from services.input_service import InputService
from services.large import offload
from services.secret_service import SecretService
from services.stored_response_service import KIND
from services.summary_service import SummaryService
from services.turn_service import TurnService

RunAnswer = Callable[[Chat], AsyncGenerator[Event, None]]


@dataclass(frozen=True, slots=True)
class Written:
    item: Item
    summary: str
    finish: Finish


class CompactionService:
    def __init__(self, chat: ChatService, turns: TurnService, secrets: SecretService, inputs: InputService) -> None:
        self._chat = chat
        self._turns = turns
        self._secrets = secrets
        self._inputs = inputs
        self._plans = CompactionPlanService(chat)
        self._summaries = SummaryService(chat)

    def unknown_keys(self, request: CompactRequest) -> list[str]:
        return responses.unknown_keys(request)

    async def compact(
        self, request: CompactRequest, owner: str, report_ignored: ReportIgnored = report_nothing
    ) -> CompactedResponse:
        """What the client is to go on from."""
        responses.check(request)
        self._chat.model_name(request.model)
        own = await self._inputs.items(request, owner, report_ignored)
        turn_request = TurnRequest(
            owner=owner, kind=KIND, conversation=request.conversation, previous=request.previous_response_id
        )
        messages = await offload(items.to_messages, own, (await self._turns.open(turn_request)).history)
        with responses.translate_errors():
            plan = await self._plans.whole(request, messages)
            written = await self._whole(plan, owner)
        finish = written.finish
        return CompactedResponse(
            id=f"resp_{uuid4().hex}",
            created_at=int(time.time()),
            output=[shown(with_defaults(item)) for item in (*items.from_messages(plan.kept), written.item)],
            usage=usage(finish.prompt_tokens, finish.cached_tokens, finish.completion_tokens, finish.reasoning_tokens),
        )

    async def _whole(self, plan: Plan, owner: str) -> Written:
        async with aclosing(self._written(plan, owner)) as steps:
            async for step in steps:
                if isinstance(step, Written):
                    return step
        raise AssertionError("a summary ends with itself")

    async def run(
        self, request: ResponseRequest, messages: Chat, owner: str, turn: Turn, answer: RunAnswer
    ) -> AsyncGenerator[Event, None]:
        """An answer, with a compaction before it or in its place where that is asked for."""
        if responses.is_triggered(request):
            plan = await self._plans.on_demand(request, messages, owner)
            return self._alone(plan, owner, turn)
        if (needed := await self._plans.needed(request, messages, owner)) is not None:
            return self._before(needed, owner, turn, answer)
        return answer(messages)

    async def _alone(self, plan: Plan, owner: str, turn: Turn) -> AsyncGenerator[Event, None]:
        async with _settled(turn), aclosing(self._written(plan, owner)) as steps:
            async for step in steps:
                match step:
                    case Head():
                        head = _own(step, turn)
                        await turn.begin(head)
                        turn.add(head)
                        yield head
                    case Compacting():
                        yield step
                    case Written(item, finish=finish):
                        turn.add(Compacted(item))
                        turn.add(finish)
                        yield Compacted(item)
                        yield finish

    async def _before(self, plan: Plan, owner: str, turn: Turn, answer: RunAnswer) -> AsyncGenerator[Event, None]:
        """Once the summary is admitted the turn is known, and the answer waits for room. The turn gets the compaction
        when it begins to be answered."""
        async with _settled(turn):
            async with aclosing(self._written(plan, owner)) as steps:
                async for step in steps:
                    match step:
                        case Head():
                            await turn.queue(step.model)
                            yield _own(step, turn)
                        case Compacting():
                            yield step
                        case Written():
                            written = step
            compacted = Compacted(written.item)
            yield compacted
            async with aclosing(retry_overloads(partial(answer, plan.chat(written.summary)))) as run:
                async for event in run:
                    if isinstance(event, Head):
                        turn.add(compacted)
                    else:
                        yield event

    async def _written(self, plan: Plan, owner: str) -> AsyncGenerator[Head | Compacting | Written, None]:
        async with aclosing(self._summaries.write(plan.transcript, plan.notes, owner)) as steps:
            async for step in steps:
                match step:
                    case Head() | Compacting():
                        yield step
                    case _:
                        item = plan.item(step.text, await self._secrets.seal(owner))
                        yield Written(item, step.text, step.finish)


@asynccontextmanager
async def _settled(turn: Turn) -> AsyncIterator[None]:
    """Ends the turn, however its answer ends."""
    error: ServiceError | None = None
    try:
        yield
    except ServiceError as raised:
        error = raised
        raise
    finally:
        await finish_turn(turn, error)


def _own(head: Head, turn: Turn) -> Head:
    """That of the response, of which the summary is a part."""
    return replace(head, id=turn.id, created=int(turn.created_at), conversation_id=turn.conversation_id)
