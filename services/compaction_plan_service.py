"""Decides whether a prompt is to be compacted, and what of it stays as it was said."""

from dataclasses import replace

from schemas.response_schema import CompactRequest, ResponseRequest
from services.chat.compaction.notes import Notes
from services.chat.compaction.plan import Plan, Sizes, budget
from services.chat.compaction.transcript import transcript
from services.chat.compaction.window import Chat, instructions, newest, parted
from services.chat.request import responses
from services.chat_service import ChatService
from services.errors import InvalidRequest, PromptTooLong
from services.large import offload


class CompactionPlanService:
    def __init__(self, chat: ChatService) -> None:
        self._chat = chat

    async def whole(self, request: CompactRequest | ResponseRequest, messages: Chat) -> Plan:
        """For a client that keeps by itself what the user said."""
        length = await self._chat.max_length(request.model)
        sizes = Sizes(length, aim=length)
        plan = await _plan(request, sizes, messages)
        return _checked(replace(plan, kept=newest(messages, budget(sizes.kept))))

    async def on_demand(self, request: ResponseRequest, messages: Chat, owner: str) -> Plan:
        """Where the conversation is stored here, the compaction has to hold all that stays of it."""
        if request.conversation is None and request.previous_response_id is None:
            return await self.whole(request, messages)
        length = await self._chat.max_length(request.model)
        return _checked(await self._window(request, messages, owner, Sizes(length, aim=length)))

    async def needed(self, request: ResponseRequest, messages: Chat, owner: str) -> Plan | None:
        """None where the prompt is short enough, or would become no shorter."""
        if not responses.compacts(request):
            return None
        length = await self._chat.max_length(request.model)
        most = length - responses.room(request, length)
        sizes = Sizes(length, aim=min(responses.threshold(request) or most, most))
        tokens = await self._tokens(request, messages, owner, length)
        if tokens <= sizes.aim or (tokens <= most and not parted(messages).has_answers):
            return None
        plan = await self._window(request, messages, owner, sizes)
        return plan if plan.transcript else None

    async def _window(self, request: ResponseRequest, messages: Chat, owner: str, sizes: Sizes) -> Plan:
        """What nothing has answered yet stays as it is, unless there is no room for it."""
        parts = parted(messages)
        most = sizes.length - responses.room(request, sizes.length)
        for past, after in ((parts.past, parts.open), (messages, ())):
            plan = replace(await _plan(request, sizes, past), after=after, stands_alone=True)
            tokens = sizes.summary + await self._tokens(request, plan.chat(), owner, sizes.length)
            if tokens <= most:
                return replace(plan, kept=newest(past, budget(min(sizes.kept, most - tokens))))
        raise PromptTooLong(tokens, most, param="messages")

    async def _tokens(self, request: ResponseRequest, messages: Chat, owner: str, length: int) -> int:
        chat = await offload(responses.as_chat, request, messages)
        try:
            return len(await self._chat.prompt_of(chat, owner, limit=length))
        except PromptTooLong as error:
            return error.tokens


async def _plan(request: CompactRequest | ResponseRequest, sizes: Sizes, past: Chat) -> Plan:
    """Of which nothing but instructions stays."""
    text = await offload(transcript, past)
    notes = Notes(
        request.model,
        max_tokens=sizes.summary_of(text),
        thinking=sizes.thinking,
        instructions=request.instructions,
        service_tier=request.service_tier,
        cache_salt=request.cache_salt,
    )
    return Plan(notes, text, kept=instructions(past))


def _checked(plan: Plan) -> Plan:
    if not plan.transcript:
        raise InvalidRequest("Nothing was said that could be compacted", param="messages")
    return plan
