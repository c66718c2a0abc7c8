"""A custom tool's input is read out of its arguments, however they are cut and written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chat.parsing.input_text import InputText, wrapped


def read(*pieces: str) -> str:
    text = InputText()
    return "".join([*map(text.feed, pieces), text.finish()])


@given(st.text())
def test_is_what_was_written(text: str) -> None:
    for arguments in (wrapped(text), json.dumps({"input": text}), json.dumps({"input": text}, indent=2)):
        assert read(arguments) == read(*arguments) == text


def test_comes_before_its_end() -> None:
    text = InputText()
    assert [text.feed(each) for each in ('{"in', 'put": "a', "\\", "n\\ud83d", '\\ude00b"', "}")] == [
        *("", "a", "", "\n", "😀b", "")
    ]


@pytest.mark.parametrize(
    ("arguments", "input"),
    [
        ('{"input": "a\nb"}', "a\nb"),  # a line end that is not escaped
        ('{"input": "a", "more": 1}', "a"),
        ('{"more": 1, "input": "a"}', "a"),
        ('{"patch": "a"}', "a"),
        ('{"a": "b", "c": "d"}', '{"a": "b", "c": "d"}'),
        ('{"input": 5}', '{"input": 5}'),
        ('{"input": "a\\x"}', "a\\x"),
        ('{"input": "\\ud800 "}', "\ufffd "),
        ("{}", "{}"),
        ('{"input": "cut', "cut"),
        ('{"inp', '{"inp'),
    ],
)
def test_other_forms_are_understood_as_well_as_can_be(arguments: str, input: str) -> None:
    assert read(arguments) == read(*arguments) == input
