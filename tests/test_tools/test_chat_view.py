"""How an answer is drawn in a terminal."""

from io import StringIO

from rich.console import Console

from tools.chat.events import Reasoning, Text
from tools.chat.view import TerminalView

CLEARED = "\x1b[2K"  # in front of each drawing of the open block


def drawn(*events: Reasoning | Text, height: int = 24) -> tuple[TerminalView, str]:
    output = StringIO()
    console = Console(file=output, force_terminal=True, width=40, height=height, color_system=None, _environ={})
    with TerminalView(console, "Thinking") as view:
        for event in events:
            view.show(event)
    return view, output.getvalue()


def kept(text: str) -> list[str]:
    """The lines that were written last, for good."""
    return [line.rstrip() for line in text.rpartition(CLEARED)[2].splitlines()]


def test_thoughts_are_folded() -> None:
    view, text = drawn(Reasoning("one two\n"), Reasoning("three\x1b[2J"), Text("Answer"))
    assert "Thought for 3 words: /thought" in text
    assert view.thought == "one two\nthree"
    assert kept(text) == ["Answer"]


def test_lines_stay_lines_and_html_stays_text() -> None:
    _, text = drawn(Text("A rose\nis <b>a</b> rose\n\n<p>so</p>"))
    assert "A rose" in text
    assert "is <b>a</b> rose" in text
    assert "<p>so</p>" in text
    assert "A rose is" not in text


def test_links_show_where_they_go() -> None:
    _, text = drawn(Text("[a bank](https://example.org/x)"))
    assert kept(text) == ["a bank (https://example.org/x)"]


def test_finished_blocks_are_not_drawn_again() -> None:
    _, text = drawn(*(Text(f"Block {number}.\n\n") for number in range(50)), height=10)
    last = [text.rindex(f"Block {number}. ") for number in range(50)]
    assert last == sorted(last)
    assert kept(text)[-1] == "Block 49."


def test_a_long_block_is_drawn_by_its_last_lines_and_kept_whole() -> None:
    code = "".join(f"line {number}\n" for number in range(100))
    _, text = drawn(Text(f"```\n{code}"), Text("```"), height=10)
    frames, _, last = text.rpartition(CLEARED)
    assert "line 50 " not in frames
    assert all(f"line {number} " in last for number in range(100))
