"""How an answer is shown while it is streamed: Markdown in a terminal, plain text elsewhere."""

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text as Styled

from tools.chat.clean_text import TextCleaner
from tools.chat.events import Event, Reasoning, Text
from tools.chat.markdown import AnswerMarkdown, finished_length

FRAMES_PER_S = 10
FOLDED_LINES = 3  # of a thought, while it is written


class View(Protocol):
    """A context: what is not shown yet is shown at its end."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def show(self, event: Event) -> None: ...


class SilentView:
    """For answers that are printed when they are complete."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def show(self, event: Event) -> None: ...


class PlainView:
    """The answer alone, to the standard output."""

    def __init__(self) -> None:
        self._cleaner = TextCleaner()
        self._ends_line = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._ends_line:
            self._write("\n")

    def show(self, event: Event) -> None:
        if isinstance(event, Text):
            self._write(self._cleaner.feed(event.text))

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self._ends_line = text.endswith("\n")


class TerminalView:
    """Finished blocks are printed for good; only the last one is drawn again, so nothing flickers and all of a long
    answer can be scrolled back to."""

    def __init__(self, console: Console, waiting: str) -> None:
        self._console = console
        self._spinner = Spinner("dots", Styled(waiting, style="dim"))
        self._texts, self._thoughts = TextCleaner(), TextCleaner()
        self.thought = ""
        self._open = ""  # text of the last block
        self._has_text = False
        self._has_blocks = False
        self._live = Live(
            _Lines(self._drawn),
            console=console,
            transient=True,
            refresh_per_second=FRAMES_PER_S,
            vertical_overflow="visible",  # the lines fit
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()
        self._print_block(self._open)

    def show(self, event: Event) -> None:
        match event:
            case Reasoning(text):
                self.thought += self._thoughts.feed(text)
            case Text(text):
                self._add(self._texts.feed(text))

    def _add(self, text: str) -> None:
        if not text:
            return
        if not self._has_text:
            self._fold_thought()
            self._has_text = True
        self._open += text
        if "\n" in text and (length := finished_length(self._open)):
            finished, self._open = self._open[:length], self._open[length:]
            self._print_block(finished)

    def _fold_thought(self) -> None:
        if self.thought:
            self._console.print(Styled(f"Thought for {len(self.thought.split())} words: /thought", style="dim"))

    def _print_block(self, markup: str) -> None:
        if markup.strip():
            self._console.print(self._spaced(AnswerMarkdown(markup)))
            self._has_blocks = True

    def _spaced(self, block: RenderableType) -> RenderableType:
        return Group("", block) if self._has_blocks else block

    def _drawn(self) -> RenderableType:
        if self._has_text:
            return self._spaced(AnswerMarkdown(self._open)) if self._open.strip() else ""
        if self.thought:
            last = "\n".join(self.thought.strip().splitlines()[-FOLDED_LINES:])
            return Group(self._spinner, Styled(last, style="dim italic"))
        return self._spinner


class _Lines:
    """The last lines that fit the terminal, of what `draw` returns at each frame."""

    def __init__(self, draw: Callable[[], RenderableType]) -> None:
        self._draw = draw

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._draw(), options.update(height=None), pad=False)
        for line in lines[-(max(2, console.height) - 1) :]:
            yield from line
            yield Segment.line()
