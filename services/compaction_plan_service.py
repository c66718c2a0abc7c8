"""Decides whether a prompt is compacted, and which of its messages stay as they are."""

from dataclasses import replace

from schemas.response_schema import CompactRequest, ResponseRequest
from services.chat.compaction.plan import BYTES_PER_TOKEN, CompactionPlan, TokenBudget
from services.chat.compaction.summary_prompt import SummaryPrompt
from services.chat.compaction.transcript import transcript
from services.chat.compaction.window import Chat, instructions, retained_within, split_unanswered
from services.chat.request import responses
from services.chat_service import ChatService
from services.errors import InvalidRequest, PromptTooLong
from services.large import offload
from services.responses.context import ResponseContext


class CompactionPlanService:
    def __init__(self, chat: ChatService) -> None:
        self._chat = chat

    async def for_client(self, request: CompactRequest | ResponseRequest, messages: Chat, owner: str) -> CompactionPlan:
        """The client keeps the retained messages, and sends them in front of the item."""
        messages = await self._chat.with_texts(messages, owner)
        budget = await self._whole_context(request)
        plan = await _plan(request, budget, messages)
        return _checked(replace(plan, before=retained_within(messages, BYTES_PER_TOKEN * budget.retained)))

    async def triggered(self, context: ResponseContext) -> CompactionPlan:
        """If the history is stored here, the item has to include all that stays of it."""
        request = context.request
        if request.conversation is None and request.previous_response_id is None:
            return await self.for_client(request, context.messages, context.owner)
        return _checked(await self._self_contained(context, await self._whole_context(request)))

    async def over_threshold(self, context: ResponseContext) -> CompactionPlan | None:
        """None if the prompt is short enough, or a summary would not shorten it."""
        request, messages = context.request, context.messages
        if not responses.compacts(request):
            return None
        length = await self._chat.max_length(request.model)
        longest = length - responses.room(request, length)
        budget = TokenBudget(length, limit=min(responses.threshold(request) or longest, longest))
        tokens = await self._count(context, messages)
        if tokens <= budget.limit or (tokens <= longest and not split_unanswered(messages).has_answers):
            return None
        plan = await self._self_contained(context, budget)
        return plan if plan.transcript else None

    async def _self_contained(self, context: ResponseContext, budget: TokenBudget) -> CompactionPlan:
        """Unanswered messages stay if the context has room for them; otherwise they are summarised too."""
        request = context.request
        messages = await self._chat.with_texts(context.messages, context.owner)
        split = split_unanswered(messages)
        longest = budget.length - responses.room(request, budget.length)
        for past, after in ((split.past, split.unanswered), (messages, ())):
            plan = replace(await _plan(request, budget, past), after=after, is_self_contained=True)
            tokens = budget.summary + await self._count(context, plan.chat())
            if tokens <= longest:
                max_bytes = BYTES_PER_TOKEN * min(budget.retained, longest - tokens)
                return replace(plan, before=retained_within(past, max_bytes))
        raise PromptTooLong(tokens, longest, param="messages")

    async def _whole_context(self, request: CompactRequest | ResponseRequest) -> TokenBudget:
        length = await self._chat.max_length(request.model)
        return TokenBudget(length, limit=length)

    async def _count(self, context: ResponseContext, messages: Chat) -> int:
        chat = await offload(responses.as_chat, context.request, messages)
        return await self._chat.count(chat, context.owner, context.cache)


async def _plan(request: CompactRequest | ResponseRequest, budget: TokenBudget, past: Chat) -> CompactionPlan:
    """Retains nothing but instructions."""
    text = await offload(transcript, past)
    prompt = SummaryPrompt(
        request.model,
        max_tokens=budget.summary_of(text),
        max_thinking_tokens=budget.thinking,
        instructions=request.instructions,
        service_tier=request.service_tier,
        cache_salt=request.cache_salt,
    )
    tools = tuple(tool for message in past for tool in message.found_tools)
    return CompactionPlan(prompt, text, before=instructions(past), tools=tools)


def _checked(plan: CompactionPlan) -> CompactionPlan:
    if not plan.transcript:
        raise InvalidRequest("There is nothing to compact: no message but instructions", param="messages")
    return plan
