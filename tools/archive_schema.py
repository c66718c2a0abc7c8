"""A conversation as a line of an archive. A valid one can be stored and returned by every route."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Annotated, Any, Literal, Self, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from database.models import Item, Turn
from schemas.item_schema import ITEMS
from schemas.request_schema import fault
from schemas.response_tool_schema import validate_by_type
from services.chat.answer import stored
from services.history import replay
from services.history.answer import answer_of
from services.history.context import CONVERSATION_ID, TURN_ID
from services.history.item_rows import TYPES_WITH_STATUS
from services.history.response import response_of

FORMAT: Literal["parley.conversation.1"] = "parley.conversation.1"
MAX_CHOICES = 256  # of one answer; requests are limited to fewer

Time = Annotated[float, Field(ge=0, le=253_402_300_799, allow_inf_nan=False)]  # up to the year 9999
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]  # PostgreSQL rejects NUL
Name = Annotated[str, StringConstraints(max_length=128, min_length=1, pattern=r"^[^\x00]*$")]
ConversationId = Annotated[str, StringConstraints(pattern=f"^{CONVERSATION_ID.pattern}$")]
TurnId = Annotated[str, StringConstraints(pattern=f"^{TURN_ID.pattern}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]


def _item(data: dict[str, Any]) -> dict[str, Any]:
    """Validates an item by the API's schema, and keeps it as it is."""
    kind, id = data.get("type"), data.get("id")
    if not isinstance(kind, str) or not 0 < len(kind) <= 64 or "\0" in kind:
        raise fault("an item has a type", "type")
    if not isinstance(id, str) or not 0 < len(id) <= 128 or "\0" in id:
        raise fault("an item has an id, of 128 characters at most", "id")
    if kind == "item_reference":
        raise fault("an item is not a reference to another", "type")
    if kind in ITEMS:
        validate_by_type(data, ITEMS)
        if kind in TYPES_WITH_STATUS and data.get("status") is None:
            raise fault("Field required", "status")
    return data


class ArchivedItem(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    data: Annotated[dict[str, Any], AfterValidator(_item)]
    parent_id: Name | None = None
    turn_id: TurnId | None = None
    choice: int | None = Field(None, ge=0, lt=MAX_CHOICES)
    created_at: Time


class Choice(BaseModel):
    model_config = ConfigDict(extra="allow")

    finish_reason: str | None = None


class Usage(BaseModel):
    model_config = ConfigDict(extra="allow")

    prompt_tokens: Count
    cached_tokens: Count
    completion_tokens: Count
    reasoning_tokens: Count


class Failure(BaseModel):
    model_config = ConfigDict(extra="allow")

    code: str
    message: str


def _like(model: type[BaseModel]) -> Any:
    """Validates by that schema, and keeps the value as it is."""

    def check(value: dict[str, Any]) -> dict[str, Any]:
        model.model_validate(value, strict=True)
        return value

    return Annotated[dict[str, Any], AfterValidator(check)]


class ArchivedTurn(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: TurnId
    kind: Literal["chat.completion", "response", "message"]
    status: Literal["completed", "incomplete", "failed", "cancelled"]
    stored: bool
    background: bool = False
    model: Text
    request: dict[str, Any] = Field({})
    metadata: dict[str, Any] = Field({}, validation_alias="metadata_", serialization_alias="metadata_")
    fingerprint: Text | None = None
    previous_id: Annotated[str, StringConstraints(max_length=64, pattern=r"^[^\x00]*$")] | None = None
    parent_id: Name | None = None
    choices: Annotated[list[_like(Choice)], Field(max_length=MAX_CHOICES)] | None = None  # type: ignore[valid-type]
    usage: _like(Usage) | None = None  # type: ignore[valid-type]
    error: _like(Failure) | None = None  # type: ignore[valid-type]
    created_at: Time
    updated_at: Time
    completed_at: Time


class ArchivedConversation(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    format: Literal["parley.conversation.1"] = FORMAT
    id: ConversationId
    listed: bool = True
    title: Text | None = None
    metadata: dict[str, Any] = Field({}, validation_alias="metadata_", serialization_alias="metadata_")
    created_at: Time
    updated_at: Time
    turns: list[ArchivedTurn] = []
    items: list[ArchivedItem] = []

    @model_validator(mode="after")
    def _is_a_tree(self) -> Self:
        validate_by_type: set[str] = set()
        for index, item in enumerate(self.items):
            id = item.data["id"]
            if id in validate_by_type:
                raise fault(f"'{id}' is in '{self.id}' twice", "items", index, "data", "id")
            if item.parent_id is not None and item.parent_id not in validate_by_type:
                why = f"'{id}' goes on from '{item.parent_id}', which does not come before it"
                raise fault(why, "items", index, "parent_id")
            validate_by_type.add(id)
        return self

    @model_validator(mode="after")
    def _can_be_shown(self) -> Self:
        by_turn = self._items_by_turn()
        for index, turn in enumerate(self.turns):
            try:
                _show(turn, by_turn.pop(turn.id, []))
            except ValidationError as error:
                first = error.errors()[0]
                raise fault(first["msg"], "turns", index, *_place(turn, first["loc"])) from None
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                raise fault(f"this answer cannot be shown: {error!r}", "turns", index) from None
        for turn_id in by_turn:
            raise fault(f"an item is of the turn '{turn_id}', which is not there", "items")
        return self

    def _items_by_turn(self) -> dict[str, list[ArchivedItem]]:
        by_turn: dict[str, list[ArchivedItem]] = {}
        for item in self.items:
            if item.turn_id is not None:
                by_turn.setdefault(item.turn_id, []).append(item)
        return by_turn


def _place(turn: ArchivedTurn, where: tuple[int | str, ...]) -> Iterator[int | str]:
    """The path in the archive of a path in the answer."""
    if where and where[0] not in ArchivedTurn.model_fields:
        yield "request"
    yield from where


def _show(turn: ArchivedTurn, items: list[ArchivedItem]) -> None:
    """Builds the answer as the routes do. With namespaces instead of ORM rows, which would take most of the time."""
    rows = [cast("Item", SimpleNamespace(data=each.data, choice=each.choice)) for each in items]
    columns = vars(turn) | {"metadata_": turn.metadata, "conversation_id": "", "partial_output": None}
    found = answer_of(cast("Turn", SimpleNamespace(**columns)), rows, listed=True)
    if turn.kind == "response":
        response_of(found)
    reply = replay.reply_of(found)
    if turn.kind == "chat.completion":
        stored.completion(reply, found.request, found.metadata, found.status)
