"""What a response's request brings, with what it refers to in its place, and opened where it was sealed here."""

from schemas.response_schema import ConversationRequest
from services.chat.items import Item
from services.chat.request import responses
from services.chat.request.refusals import ReportIgnored
from services.secret_service import SecretService
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
