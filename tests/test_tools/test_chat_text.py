"""The text of answers: what is removed from it, and where its Markdown blocks end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.chat.clean_text import TextCleaner, clean, clean_line
from tools.chat.events import Text, read_events
from tools.chat.markdown import finished_length


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\x1b[31mb\x1b[0m", "ab"),
        ("a\x9b2Jb", "ab"),
        ("a\x1b]0;title\x07b\x1b]8;;http://x\x1b\\c", "abc"),
        ("a\x1bPq\x1b\\b\x1b_x\x1b\\c", "abc"),
        ("a\x1bcb\x1b(Bc\x1b7d", "abcd"),
        ("a\x00\x07\x08\r\x7f\x85b\tc\nd", "ab\tc\nd"),
        ("kept: [31m é 😀 \u200d", "kept: [31m é 😀 \u200d"),
        ("open \x1b[3", "open "),
        ("open \x1b]0;never ended\nx", "open ]0;never ended\nx"),
        ("open \x1b]0;" + "x" * 3000, "open ]0;" + "x" * 3000),
    ],
)
def test_control_characters_are_removed(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@given(st.lists(st.text("ab\x1b[]0;m\x07\x9b\\\n", max_size=6), max_size=12))
def test_pieces_are_as_clean_as_the_whole(pieces: list[str]) -> None:
    cleaner = TextCleaner()
    cleaned = "".join(map(cleaner.feed, pieces))
    assert not set(cleaned) & {"\x1b", "\x07", "\x9b"}
    assert cleaned == clean("".join(pieces))


def test_a_line_has_no_breaks() -> None:
    assert clean_line(" a\n b\x1b[2J\tc ") == "a b c"


@pytest.mark.parametrize(
    ("markup", "finished"),
    [
        ("One", ""),
        ("One\n\nTwo", ""),
        ("One\n\nTwo\n", "One\n\n"),
        ("# A\nText\n", "# A\n"),
        ("```\na\n\nb\n", ""),
        ("```\na\n```\nText\n", "```\na\n```\n"),
        ("- a\n\n- b\n", ""),
        ("1. a\n2. b\n\nText\n", "1. a\n2. b\n\n"),
    ],
)
def test_blocks_are_finished_when_another_begins(markup: str, finished: str) -> None:
    assert markup[: finished_length(markup)] == finished


def test_events_are_split_at_newlines_only() -> None:
    wire = (
        'event: x\r\ndata: {"type": "response.output_text.delta", "delta": "a\u2028\x85b"}\r\n\r\n: ping\r\n'.encode()
    )
    assert list(read_events(wire[i : i + 1] for i in range(len(wire)))) == [Text("a\u2028\x85b")]
