"""Compacts conversations: for a client that asks for it, or before an answer continues one that is too long."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from uuid import uuid4

from schemas.response_answer_schema import CompactedResponse
from schemas.response_schema import CompactRequest
from services.chat import items
from services.chat.answer.response_events import usage
from services.chat.compaction.item import public_item
from services.chat.compaction.plan import CompactionPlan
from services.chat.compaction.window import Chat
from services.chat.events import Compacted, Compacting, Event, Head
from services.chat.request import responses
from services.chat.request.refusals import ReportIgnored, report_nothing
from services.chat_service import ChatService, Start, admitted, finishing, retried
from services.compaction_plan_service import CompactionPlanService
from services.history.item_rows import with_defaults
from services.history.turn import Facts, Turn
from services.input_service import InputService
from services.parameter_names import translate_errors
from services.responses.context import ResponseContext
from services.secret_service import SecretService
from services.summary_service import SummaryService, SummaryWriter

Complete = Callable[[Chat], Awaitable[Start]]  # answers messages


class CompactionService:
    def __init__(self, chat: ChatService, secrets: SecretService, inputs: InputService) -> None:
        self._chat = chat
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
        messages = await self._inputs.messages(request, owner, report_ignored)
        with translate_errors(responses.translated):
            plan = await self._plans.for_client(request, messages, owner)
            summary = await self._written(plan, owner)
            item = plan.item(summary.text, await self._secrets.seal(owner))
        finish = summary.finish
        return CompactedResponse(
            id=f"resp_{uuid4().hex}",
            created_at=int(time.time()),
            output=[public_item(with_defaults(item)) for item in (*items.from_messages(plan.before), item)],
            usage=usage(finish.prompt_tokens, finish.cached_tokens, finish.completion_tokens, finish.reasoning_tokens),
        )

    async def _written(self, plan: CompactionPlan, owner: str) -> SummaryWriter:
        async with aclosing(await self._summaries.begin(plan.transcript, plan.prompt, owner)) as summary:
            await summary.start()
            while await summary.write():
                pass
        return summary

    async def plan(self, context: ResponseContext, turn: Turn, complete: Complete) -> Start:
        """An answer; a compaction in front of it, or instead of it, as the request asks."""
        if responses.is_triggered(context.request):
            plan = await self._plans.triggered(context)
            return partial(self._compact, plan, context.owner, turn, context.facts())
        if (needed := await self._plans.over_threshold(context)) is not None:
            return partial(self._compact, needed, context.owner, turn, context.facts(), complete)
        return await complete(context.messages)

    async def _compact(
        self, plan: CompactionPlan, owner: str, turn: Turn, facts: Facts, complete: Complete | None = None
    ) -> AsyncGenerator[Event, None]:
        """Refusals are raised before the turn begins. An answer that follows waits for room, because the summary would
        be lost with a refusal: its turn is stored as queued, and receives the compaction when it is admitted."""
        summary = await self._summaries.begin(plan.transcript, plan.prompt, owner)
        head = _head_of(turn, await summary.start())
        async with finishing(turn), aclosing(summary):
            if complete:
                await turn.queue(head.model, facts)
            else:
                await turn.begin(head, facts)
                turn.add(head)
            yield head
            yield Compacting()
            while await summary.write():
                yield Compacting()
            compacted = Compacted(plan.item(summary.text, await self._secrets.seal(owner)))
            yield compacted
            if complete is None:
                turn.add(compacted)
                turn.add(summary.finish)
                yield summary.finish
                return
            answer = await admitted(await retried(partial(complete, plan.chat(summary.text))))
            async with aclosing(answer.events) as events:
                turn.add(compacted)
                yield answer.head
                async for event in events:
                    yield event


def _head_of(turn: Turn, head: Head) -> Head:
    """The response's own; `head` is that of the summary's first request."""
    return replace(head, id=turn.id, created=int(turn.created_at), conversation_id=turn.conversation_id)
