"""The header that names ignored parameters."""

import pytest

from app.common.ignored import HEADER, UnknownKeys
from services.errors import InvalidRequest

UNKNOWN = UnknownKeys(strict=False)


def shown(names: list[str]) -> list[str]:
    return UNKNOWN.header(names)[HEADER].split(", ")


def test_no_header_without_ignored_parameters() -> None:
    assert UNKNOWN.header([]) == {}
    assert UNKNOWN.header(["with\nbreak", "é", "k" * 129]) == {}


def test_few_names_are_all_listed() -> None:
    names = [f"messages.{n}.id" for n in range(10, 30)]
    assert shown(names) == names


def test_names_that_differ_in_indices_are_listed_once() -> None:
    names = [f"messages.{n}.content.{n}.cache_control" for n in range(10, 90)]
    assert shown([*names, "tools.0.strict", "zebra"]) == [names[0], "tools.0.strict", "zebra"]


def test_number_of_names_is_limited() -> None:
    assert shown([f"k{n:03}" for n in range(500)]) == [f"k{n:03}" for n in range(20)]


def test_later_names_are_added() -> None:
    ignored = UNKNOWN.of(["zebra"])
    headers = ignored.headers  # as a response that has not started holds them
    ignored.add([])
    ignored.add(["reasoning.effort"])
    assert headers == {HEADER: "reasoning.effort, zebra"}


def test_strict_server_rejects_ignored_parameters() -> None:
    ignored = UnknownKeys(strict=True).of([])
    with pytest.raises(InvalidRequest) as refused:
        ignored.add(["zebra", "apple"])
    assert refused.value.param == "apple"
