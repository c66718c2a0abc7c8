"""The header that names what was left aside."""

import pytest

from app.common.ignored import HEADER, UnknownKeys
from services.errors import InvalidRequest

UNKNOWN = UnknownKeys(strict=False)


def shown(names: list[str]) -> list[str]:
    return UNKNOWN.header(names)[HEADER].split(", ")


def test_nothing_left_aside_has_no_header() -> None:
    assert UNKNOWN.header([]) == {}
    assert UNKNOWN.header(["with\nbreak", "é", "k" * 129]) == {}


def test_all_are_shown_while_they_are_few() -> None:
    names = [f"messages.{n}.id" for n in range(10, 30)]
    assert shown(names) == names


def test_of_many_that_differ_only_in_their_places_the_first_is_shown() -> None:
    names = [f"messages.{n}.content.{n}.cache_control" for n in range(10, 90)]
    assert shown([*names, "tools.0.strict", "zebra"]) == [names[0], "tools.0.strict", "zebra"]


def test_many_that_differ_are_cut() -> None:
    assert shown([f"k{n:03}" for n in range(500)]) == [f"k{n:03}" for n in range(20)]


def test_what_becomes_known_later_is_added() -> None:
    ignored = UNKNOWN.of(["zebra"])
    headers = ignored.headers  # as a response holds them that has not begun
    ignored.add([])
    ignored.add(["reasoning.effort"])
    assert headers == {HEADER: "reasoning.effort, zebra"}


def test_a_strict_server_refuses_it_whenever_it_becomes_known() -> None:
    ignored = UnknownKeys(strict=True).of([])
    with pytest.raises(InvalidRequest) as refused:
        ignored.add(["zebra", "apple"])
    assert refused.value.param == "apple"
