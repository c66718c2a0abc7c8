"""What a chat writes: answers to the standard output; notes, too, if that is a terminal."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.text import Text

from tools.chat.clean_text import clean
from tools.chat.echo import no_echo
from tools.chat.markdown import AnswerMarkdown
from tools.chat.view import PlainView, TerminalView, View


class Screen:
    def __init__(self) -> None:
        is_terminal = sys.stdout.isatty()
        self._output = Console(force_terminal=is_terminal, highlight=False)
        self._notes = self._output if is_terminal else Console(stderr=True, highlight=False)
        self.is_rich = is_terminal and not self._output.is_dumb_terminal
        self.thought = ""  # of the last answer

    def write(self, text: str = "", style: str = "") -> None:
        """Text of a server or of a user: no markup, no control characters."""
        self._notes.print(Text(clean(text), style=style))

    def hint(self, text: str) -> None:
        self.write(text, "dim")

    def problem(self, text: str) -> None:
        self.write(text, "red")

    def rows(self, rows: Iterable[tuple[str, str]]) -> None:
        rows = [(clean(name), clean(text)) for name, text in rows]
        width = max((len(name) for name, _ in rows), default=0)
        for name, text in rows:
            self._notes.print(Text.assemble((name.ljust(width + 2), "bold"), text), soft_wrap=True)

    def markdown(self, text: str) -> None:
        self._output.print(AnswerMarkdown(clean(text)))

    @contextmanager
    def answering(self, waiting: str) -> Iterator[View]:
        if not self.is_rich:
            with PlainView() as plain:
                yield plain
            return
        with no_echo(), TerminalView(self._output, waiting) as view:
            try:
                yield view
            finally:
                self.thought = view.thought
        self._output.print()

    def waiting(self, text: str) -> AbstractContextManager[object]:
        """A spinner; a line where nothing can spin."""
        if self._notes.is_terminal and not self._notes.is_dumb_terminal:
            return self._spinning(text)
        return self._noted(text)

    @contextmanager
    def _spinning(self, text: str) -> Iterator[None]:
        with no_echo(), self._notes.status(Text(text, style="dim")):
            yield

    @contextmanager
    def _noted(self, text: str) -> Iterator[None]:
        self.hint(text)
        yield
