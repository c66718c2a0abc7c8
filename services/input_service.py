"""What a response's request brings, with what it refers to in its place, and opened where it was sealed here; and the
history before it."""

from schemas.response_schema import ConversationRequest
from services.chat import items
from services.chat.compaction.window import Chat
from services.chat.items import Item
from services.chat.request import responses
from services.chat.request.refusals import ReportIgnored
from services.history.turn import TurnRequest
from services.large import offload
from services.secret_service import SecretService
from services.stored_response_service import KIND
from services.turn_service import TurnService


class InputService:
    def __init__(self, turns: TurnService, secrets: SecretService) -> None:
        self._turns = turns
        self._secrets = secrets

    async def items(self, request: ConversationRequest, owner: str, report_ignored: ReportIgnored) -> list[Item]:
        """`report_ignored` gets the names of those that could not be opened."""
        ids = [item["id"] for item in request.input if item["type"] == "item_reference"]
        own = responses.own_items(request, await self._turns.items_by_id(ids, owner) if ids else {})
        return await self._secrets.opened(own, owner, report_ignored)

    async def messages(self, request: ConversationRequest, owner: str, report_ignored: ReportIgnored) -> Chat:
        """All that its prompt has but the instructions."""
        own = await self.items(request, owner, report_ignored)
        turn_request = TurnRequest(
            owner=owner,
            kind=KIND,
            conversation=request.conversation,
            item=request.parent_item,
            previous=request.previous_response_id,
        )
        history = (await self._turns.new_turn(turn_request)).history
        return await offload(items.to_messages, own, history)
