"""What one compaction is to do: which part of a conversation is summarised, and what stays beside the summary."""

from dataclasses import dataclass

from schemas.chat_schema import ChatMessage
from services.chat import items
from services.chat.compaction.item import Compaction, Item, sealed
from services.chat.compaction.notes import Notes
from services.chat.compaction.window import Chat
from services.chat.sealed import Seal

MOST_SUMMARY = 4_096  # tokens
SHORTEST_SUMMARY = 256
MOST_THINKING = 1_024
MOST_KEPT = 64_000
BYTES_PER_TOKEN = 3  # of text that is not counted, with some to spare


@dataclass(frozen=True, slots=True)
class Sizes:
    """In tokens, for a context of this length and a prompt that is not to be longer than `aim`."""

    length: int
    aim: int

    @property
    def summary(self) -> int:
        return min(MOST_SUMMARY, self.length // 8, self.aim // 4)

    def summary_of(self, text: str) -> int:
        """About half as long as the text."""
        tokens = len(text.encode(errors="replace")) // BYTES_PER_TOKEN
        return min(self.summary, max(SHORTEST_SUMMARY, tokens // 2))

    @property
    def thinking(self) -> int:
        return min(MOST_THINKING, self.length // 8)

    @property
    def kept(self) -> int:
        return min(MOST_KEPT, self.aim // 4)


def budget(tokens: int) -> int:
    """In bytes of text."""
    return BYTES_PER_TOKEN * tokens


@dataclass(frozen=True, slots=True)
class Plan:
    notes: Notes
    transcript: str  # to be summarised
    kept: Chat  # what stays of that as it was said
    after: Chat = ()  # what stays because nothing has answered it
    stands_alone: bool = False  # or goes with what the client keeps

    def chat(self, summary: str = "") -> list[ChatMessage]:
        """What an answer goes on from."""
        message = ChatMessage(role="user", content=Compaction(summary).message())
        return [*self.kept, message, *self.after]

    def item(self, summary: str, seal: Seal) -> Item:
        before = tuple(items.from_messages(self.kept)) if self.stands_alone else None
        return sealed(Compaction(summary, before, tuple(items.from_messages(self.after))), seal)
