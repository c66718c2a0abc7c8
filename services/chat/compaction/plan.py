"""One compaction: the text to summarise, and the messages that stay beside the summary."""

from dataclasses import dataclass

from schemas.chat_schema import ChatMessage
from services.chat import items
from services.chat.compaction.item import Compaction, Item, seal_item
from services.chat.compaction.summary_prompt import SummaryPrompt
from services.chat.compaction.window import Chat
from services.chat.sealed import Seal

MAX_SUMMARY_TOKENS = 4_096
MIN_SUMMARY_TOKENS = 256
MAX_THINKING_TOKENS = 1_024
MAX_RETAINED_TOKENS = 64_000
BYTES_PER_TOKEN = 3  # a low estimate


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """For a model's context of `length` tokens, and a prompt that should stay below `limit`."""

    length: int
    limit: int

    @property
    def summary(self) -> int:
        return min(MAX_SUMMARY_TOKENS, self.length // 8, self.limit // 4)

    def summary_of(self, text: str) -> int:
        """About half as many as the text has."""
        tokens = len(text.encode(errors="replace")) // BYTES_PER_TOKEN
        return min(self.summary, max(MIN_SUMMARY_TOKENS, tokens // 2))

    @property
    def thinking(self) -> int:
        return min(MAX_THINKING_TOKENS, self.length // 8)

    @property
    def retained(self) -> int:
        """Of user messages."""
        return min(MAX_RETAINED_TOKENS, self.limit // 4)


@dataclass(frozen=True, slots=True)
class CompactionPlan:
    prompt: SummaryPrompt
    transcript: str
    before: Chat  # messages in front of the summary
    after: Chat = ()  # and behind it: those that were not answered yet
    tools: tuple[Item, ...] = ()  # found by searches in the transcript
    is_self_contained: bool = False  # the item includes these messages; otherwise the client keeps them

    def chat(self, summary: str = "") -> list[ChatMessage]:
        """The messages that an answer continues from."""
        return [*self.before, Compaction(summary, tools=self.tools).message(), *self.after]

    def item(self, summary: str, seal: Seal) -> Item:
        before = tuple(items.from_messages(self.before)) if self.is_self_contained else None
        return seal_item(Compaction(summary, before, tuple(items.from_messages(self.after)), self.tools), seal)
