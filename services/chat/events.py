"""What comes out of a run, and the reply it adds up to."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from services.engine.base import FinishReason, Piece, Times
from services.errors import EngineFailed


@dataclass(frozen=True, slots=True)
class Head:
    """What all parts of one answer share. The first event of a run: the request is admitted."""

    id: str
    created: int  # epoch seconds
    model: str  # as the client named it
    fingerprint: str
    reply_id: str
    conversation_id: str | None


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt
    times: Times | None = None


Event = Head | Text | Finish


@dataclass(slots=True)
class Reply:
    """The fold of events: what was said so far, and how it ended."""

    head: Head | None = None
    text: str = ""
    finish: Finish | None = None

    def add(self, event: Event) -> None:
        match event:
            case Head():
                self.head = event
            case Text(text):
                self.text += text
            case Finish():
                self.finish = event


async def events(head: Head, pieces: AsyncGenerator[Piece, None], prompt_tokens: int) -> AsyncGenerator[Event, None]:
    completion_tokens = 0
    yield head
    async with aclosing(pieces):
        async for piece in pieces:
            completion_tokens += len(piece.token_ids)
            if piece.text:
                yield Text(piece.text, piece.token_ids)
            if piece.finish:
                yield Finish(piece.finish, prompt_tokens, completion_tokens, piece.cached_tokens, piece.times)
                return
    raise EngineFailed("The engine ended without finishing its answer")


async def head_of(run: AsyncIterator[Event]) -> Head:
    """The first event of a run; whatever refuses the request is raised here."""
    head = await anext(run)
    assert isinstance(head, Head)
    return head
