"""One conversation with a server: what is asked, where the branch stands, and how an answer ends."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tools.chat.clean_text import clean_line
from tools.chat.client import Client
from tools.chat.errors import ChatError, LostConnection
from tools.chat.events import Answer, Event, Json, Started
from tools.chat.tree import Tree

TITLE_CHARS = 80
SYSTEM = "system"  # the key of a conversation's metadata

Show = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Turn:
    """What is asked next. Without `input` the item `parent` is answered once more."""

    text: str
    parent: str | None = None  # the item to go on from; None: where the branch stands; empty: before the first one
    input: Sequence[Json] = ()


def question(text: str, images: Sequence[str] = (), parent: str | None = None) -> Turn:
    """`images`: data URLs."""
    pictures = [{"type": "input_image", "image_url": url} for url in images]
    content = [*pictures, {"type": "input_text", "text": text}]
    return Turn(text, parent, [{"type": "message", "role": "user", "content": content}])


@dataclass(slots=True)
class Session:
    client: Client
    model: str | None = None
    system: str | None = None
    sampling: Json = field(default_factory=dict)
    conversation: str | None = None
    tip: str = ""  # the item that the branch ends with
    _unsettled: str | None = None  # an answer that could not be cancelled; the conversation is busy while it is written

    def open(self, conversation: str) -> Tree:
        """Goes on with the newest branch of a conversation."""
        found, tree = self.client.conversation(conversation), self.client.tree(conversation)
        self.conversation, self.tip = conversation, tree.newest
        if SYSTEM in found["metadata"]:
            self.system = str(found["metadata"][SYSTEM])
        return tree

    def reset(self) -> None:
        self.conversation, self.tip = None, ""

    def set_system(self, text: str | None) -> None:
        """Stored with the conversation, so that it goes on with it."""
        self.system = text
        if self.conversation is not None:
            metadata = self.client.conversation(self.conversation)["metadata"]
            metadata.pop(SYSTEM, None)
            self.client.set_metadata(self.conversation, {**metadata, **self._metadata()})

    def tree(self) -> Tree:
        return self.client.tree(self.conversation) if self.conversation else Tree([])

    def ask(self, turn: Turn, show: Show) -> Answer:
        """Ctrl-C ends the answer, here and on the server: what came so far is returned."""
        if self.conversation is None:
            title = clean_line(turn.text)[:TITLE_CHARS]
            self.conversation = self.client.create_conversation(title, self._metadata())
        if self._unsettled is not None:
            self._cancel(self._unsettled)
        answer = self._stream(self._body(turn), show)
        self.tip = answer.last_item or self.client.question_of(answer.id)
        return answer

    def _stream(self, body: Json, show: Show) -> Answer:
        running: str | None = None
        try:
            for event in self.client.stream(body):
                if isinstance(event, Started):
                    running = event.response_id
                if isinstance(event, Answer):
                    running = None
                    return event
                show(event)
            raise LostConnection("The connection to the server is lost: the answer has no end")
        except KeyboardInterrupt:
            if running is None:
                raise
            stopped, running = running, None
            return self._cancel(stopped)
        finally:
            if running is not None:  # whatever ended the reading, nobody reads on
                with suppress(ChatError):
                    self._cancel(running)

    def _cancel(self, response_id: str) -> Answer:
        self._unsettled = response_id
        answer = self.client.cancel(response_id)
        self._unsettled = None
        return answer

    def _metadata(self) -> Json:
        return {SYSTEM: self.system} if self.system else {}

    def _body(self, turn: Turn) -> Json:
        parent = self.tip if turn.parent is None else turn.parent
        given = {"model": self.model, "instructions": self.system, **self.sampling}
        return {
            "input": list(turn.input),
            "conversation": self.conversation,
            "parent_item": parent,
            **{name: value for name, value in given.items() if value is not None},
        }
