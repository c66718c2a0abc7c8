"""Which of several strings comes first in a text, and which may begin at its end."""

import pytest

from services.engine.stop_strings import first, overlap


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("one two", (0, "on")),
        ("say two, one", (4, "two")),
        ("on the way", (0, "on")),
        ("three", None),
        ("", None),
    ],
)
def test_the_first_is_the_shortest_of_those_that_begin_first(text: str, found: tuple[int, str] | None) -> None:
    assert first(text, ("one", "on", "two")) == found


@pytest.mark.parametrize(
    ("text", "size"), [("a <", 1), ("a </st", 4), ("a </stop", 6), ("a </stop>", 0), ("a <<", 1), ("a", 0), ("", 0)]
)
def test_the_end_of_a_text_may_begin_one_of_them(text: str, size: int) -> None:
    assert overlap(text, ("</stop>", "<b>")) == size


def test_without_any_there_is_none() -> None:
    assert first("text", ()) is None
    assert overlap("text", ()) == 0
