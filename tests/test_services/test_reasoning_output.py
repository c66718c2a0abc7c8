"""In which form thoughts are answered."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chat.answer.reasoning_output import ENOUGH, MOST, ReasoningOutput, beginning
from services.chat.items import reasoning

LONG = "They ask for the time. " * 20


@pytest.mark.parametrize(
    ("thought", "found"),
    [
        ("\nShort.\n", "Short."),
        ("First.\nStill first.\n\nSecond.", "First.\nStill first."),
        (LONG, ("They ask for the time. " * 7).rstrip()),
        ("Pi is 3.14159, " * 12 + "so. Then", "Pi is 3.14159, " * 12 + "so."),
        ("想" * ENOUGH + "。还有", "想" * ENOUGH + "。"),
        ("x" * 1000, "x" * MOST),
        (" \n", ""),
    ],
)
def test_the_beginning_is_a_paragraph_or_some_sentences(thought: str, found: str) -> None:
    assert beginning(thought) == found


@given(st.lists(st.sampled_from(["a", "Hm. ", "\n", "\n\n", " ", "。", "b" * 50, "3.1"]), max_size=30))
def test_the_beginning_of_a_text_that_grows_only_grows(pieces: list[str]) -> None:
    beginnings = [beginning("".join(pieces[:count])) for count in range(len(pieces) + 1)]
    assert all(later.startswith(earlier) for earlier, later in pairwise(beginnings))


def test_reasoning_is_shown_in_the_requested_form() -> None:
    item = {"id": "rs_1", **reasoning("One.\n\nTwo.")}
    assert ReasoningOutput().shown(item) == item
    whole = {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "One.\n\nTwo."}]}
    assert ReasoningOutput("auto").shown(item) == whole
    assert ReasoningOutput("concise").shown(item)["summary"] == [{"type": "summary_text", "text": "One."}]
    assert ReasoningOutput("concise", str.upper).shown(item)["encrypted_content"] == "ONE.\n\nTWO."
    assert ReasoningOutput("auto", str.upper).shown({"type": "reasoning", "summary": [], "content": []}) == {
        "type": "reasoning",
        "summary": [],
    }
