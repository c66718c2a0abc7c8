"""Compacts conversations: for a client that asks for it, or before an answer continues one that is too long."""

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
from services.chat.compaction.item import public_item
from services.chat.compaction.plan import CompactionPlan
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
from services.parameter_names import translate_errors
from services.secret_service import SecretService
from services.stored_response_service import KIND
from services.summary_service import SummaryService
from services.turn_service import TurnService

RunAnswer = Callable[[Chat], AsyncGenerator[Event, None]]


@dataclass(frozen=True, slots=True)
class CompactionResult:
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
        """Returns the items that the client sends from now on instead of the conversation. Stores nothing."""
        responses.check(request)
        self._chat.model_name(request.model)
        own = await self._inputs.items(request, owner, report_ignored)
        turn_request = TurnRequest(
            owner=owner, kind=KIND, conversation=request.conversation, previous=request.previous_response_id
        )
        messages = await offload(items.to_messages, own, (await self._turns.open(turn_request)).history)
        with translate_errors(responses.translated):
            plan = await self._plans.for_client(request, messages)
            result = await self._result(plan, owner)
        finish = result.finish
        return CompactedResponse(
            id=f"resp_{uuid4().hex}",
            created_at=int(time.time()),
            output=[public_item(with_defaults(item)) for item in (*items.from_messages(plan.before), result.item)],
            usage=usage(finish.prompt_tokens, finish.cached_tokens, finish.completion_tokens, finish.reasoning_tokens),
        )

    async def _result(self, plan: CompactionPlan, owner: str) -> CompactionResult:
        async with aclosing(self._progress(plan, owner)) as progress:
            async for step in progress:
                if isinstance(step, CompactionResult):
                    return step
        raise AssertionError("the result is the last step")

    async def run(
        self, request: ResponseRequest, messages: Chat, owner: str, turn: Turn, answer: RunAnswer
    ) -> AsyncGenerator[Event, None]:
        """The events of an answer; of a compaction in front of it, or instead of it, as the request asks."""
        if responses.is_triggered(request):
            plan = await self._plans.triggered(request, messages, owner)
            return self._compact_only(plan, owner, turn)
        if (needed := await self._plans.over_threshold(request, messages, owner)) is not None:
            return self._compact_and_answer(needed, owner, turn, answer)
        return answer(messages)

    async def _compact_only(self, plan: CompactionPlan, owner: str, turn: Turn) -> AsyncGenerator[Event, None]:
        async with _finishing(turn), aclosing(self._progress(plan, owner)) as progress:
            async for step in progress:
                match step:
                    case Head():
                        head = _head_of(turn, step)
                        await turn.begin(head)
                        turn.add(head)
                        yield head
                    case Compacting():
                        yield step
                    case CompactionResult(item, finish=finish):
                        turn.add(Compacted(item))
                        turn.add(finish)
                        yield Compacted(item)
                        yield finish

    async def _compact_and_answer(
        self, plan: CompactionPlan, owner: str, turn: Turn, answer: RunAnswer
    ) -> AsyncGenerator[Event, None]:
        """Stores the turn as queued once the summary is admitted. The answer then waits for room, because the summary
        would be lost with a refusal; the turn receives the compaction when the answer is admitted."""
        async with _finishing(turn):
            async with aclosing(self._progress(plan, owner)) as progress:
                async for step in progress:
                    match step:
                        case Head():
                            await turn.queue(step.model)
                            yield _head_of(turn, step)
                        case Compacting():
                            yield step
                        case CompactionResult():
                            result = step
            compacted = Compacted(result.item)
            yield compacted
            async with aclosing(retry_overloads(partial(answer, plan.chat(result.summary)))) as run:
                async for event in run:
                    if isinstance(event, Head):
                        turn.add(compacted)
                    else:
                        yield event

    async def _progress(
        self, plan: CompactionPlan, owner: str
    ) -> AsyncGenerator[Head | Compacting | CompactionResult, None]:
        async with aclosing(self._summaries.write(plan.transcript, plan.prompt, owner)) as progress:
            async for step in progress:
                match step:
                    case Head() | Compacting():
                        yield step
                    case _:
                        item = plan.item(step.text, await self._secrets.seal(owner))
                        yield CompactionResult(item, step.text, step.finish)


@asynccontextmanager
async def _finishing(turn: Turn) -> AsyncIterator[None]:
    """Finishes the turn on every path."""
    error: ServiceError | None = None
    try:
        yield
    except ServiceError as raised:
        error = raised
        raise
    finally:
        await finish_turn(turn, error)


def _head_of(turn: Turn, head: Head) -> Head:
    """The response's own; `head` is that of the summary's first request."""
    return replace(head, id=turn.id, created=int(turn.created_at), conversation_id=turn.conversation_id)
