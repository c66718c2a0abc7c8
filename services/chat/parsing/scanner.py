"""The text of one answer while it comes: what is not understood yet, and the events made of the rest."""

from dataclasses import dataclass

from services.chat.events import OutputEvent, Reasoning, Text


@dataclass(frozen=True, slots=True)
class ParsedEvent:
    event: OutputEvent
    end: int  # of the characters it was made from, counted from the beginning of the answer


class Scanner:
    def __init__(self, index: int = 0) -> None:
        self.index = index  # of the choice
        self.text = ""  # not understood yet
        self.is_over = False  # nothing more will come
        self._num_taken = 0
        self._events: list[ParsedEvent] = []

    def take(self, size: int) -> str:
        taken, self.text = self.text[:size], self.text[size:]
        self._num_taken += len(taken)
        return taken

    def put_back(self, text: str) -> None:
        """What was taken last, to be read once more."""
        self.text, self._num_taken = text + self.text, self._num_taken - len(text)

    def skip_blank(self) -> bool:
        """Whether something follows."""
        self.take(len(self.text) - len(self.text.lstrip()))
        return bool(self.text)

    def may_become(self, marker: str, text: str | None = None) -> bool:
        """Whether more text could make this (or all that is not understood) the marker's beginning."""
        return not self.is_over and marker.startswith(self.text if text is None else text)

    def emit(self, event: OutputEvent) -> None:
        self._events.append(ParsedEvent(event, self._num_taken))

    def emit_text(self, kind: type[Text | Reasoning], size: int) -> None:
        """The next characters, if there are any, as content or as a thought."""
        if text := self.take(size):
            self.emit(kind(text, index=self.index))

    def take_events(self) -> list[ParsedEvent]:
        """What has been made since the last time."""
        events, self._events = self._events, []
        return events
