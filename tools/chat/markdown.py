"""Markdown of a model's answer: where its finished blocks end, and how they are rendered."""

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.markdown import Markdown

# html off: it is shown as text instead of being left out
PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


class AnswerMarkdown(Markdown):
    """Keeps line breaks, as in poems, and shows where links go."""

    def __init__(self, markup: str) -> None:
        super().__init__("", code_theme="ansi_dark", hyperlinks=False)
        self.markup = markup
        self.parsed = PARSER.parse(markup)
        for token in self.parsed:
            _keep_line_breaks(token)


def _keep_line_breaks(token: Token) -> None:
    for child in token.children or []:
        if child.type == "softbreak":
            child.type = "hardbreak"


def finished_length(markup: str) -> int:
    """Characters of the blocks that no later text changes: all but the last one that has a whole line."""
    whole = markup[: markup.rfind("\n") + 1]
    starts = [token.map[0] for token in PARSER.parse(whole) if token.level == 0 and token.nesting >= 0 and token.map]
    if len(starts) < 2:
        return 0
    return sum(len(line) for line in whole.splitlines(keepends=True)[: starts[-1]])
