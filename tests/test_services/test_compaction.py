"""What of a conversation a summary stands for, and how it is kept."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from schemas.chat_schema import ChatMessage
from schemas.item_schema import COMPACTED
from schemas.item_schema import Item as ItemForm
from services.chat import items
from services.chat.compaction.item import (
    SUMMARY_PREFIX,
    Compaction,
    Item,
    compaction_of,
    open_item,
    public_item,
    seal_item,
)
from services.chat.compaction.plan import CompactionPlan, TokenBudget
from services.chat.compaction.summary_prompt import SummaryPrompt
from services.chat.compaction.transcript import MAX_TOOL_CHARS, portion_end, transcript, truncate_middle
from services.chat.compaction.window import Split, retained_within, split_unanswered
from services.chat.request.opened import Opened
from services.chat.sealed import Seal

SEAL = Seal(b"a secret of the server", "me")
CALL: dict[str, Any] = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at": "door"}'}}
CUSTOM: dict[str, Any] = {"id": "d", "type": "custom", "custom": {"name": "patch", "input": "*** Begin"}}
SYSTEM = ChatMessage(role="system", content="Be good.")
DEVELOPER = ChatMessage(role="developer", content="Be quick.")
USER = ChatMessage(content="What is there?")
ANSWER = ChatMessage(role="assistant", content="A door.", reasoning_content="Hm.")
CALLS = ChatMessage(role="assistant", content="I look.", tool_calls=[CALL, CUSTOM])
RESULT = ChatMessage(role="tool", tool_call_id="c", content="It is shut.")
DONE = ChatMessage(role="tool", tool_call_id="d", content=[{"type": "text", "text": "Patched."}])
SUMMARY = Compaction("They spoke.").message()


def user_items(*texts: str) -> list[Item]:
    """Of the user's and the assistant's, in turn."""
    roles = ("user", "assistant")
    return items.from_messages([ChatMessage(role=roles[index % 2], content=text) for index, text in enumerate(texts)])  # type: ignore[arg-type]  # they are roles


def read(*given: Item, history: list[ChatMessage] | None = None) -> list[str]:
    """What each message of the prompt says."""
    return [
        str(message.content).removeprefix(SUMMARY_PREFIX).strip() for message in items.to_messages(given, history or [])
    ]


class TestTranscript:
    def test_the_whole_conversation_is_in_it(self) -> None:
        assert transcript([SYSTEM, DEVELOPER, SUMMARY, USER, CALLS, RESULT, DONE, ANSWER]).split("\n\n") == [
            "[notes so far]\nThey spoke.",
            "[user]\nWhat is there?",
            "[assistant]\nI look.",
            '[assistant calls look]\n{"at": "door"}',
            "[assistant calls patch]\n*** Begin",
            "[result of look]\nIt is shut.",
            "[result of patch]\nPatched.",
            "[assistant]\nA door.",
        ]

    def test_an_image_is_mentioned(self) -> None:
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}}
        shown = ChatMessage(content=[image, {"type": "text", "text": "What is it?"}])
        assert transcript([shown]) == "[user]\n[image_url]\nWhat is it?"

    def test_of_a_long_result_the_beginning_and_the_end(self) -> None:
        long = "first " + "x" * 2 * MAX_TOOL_CHARS + " last"
        abridged_text = transcript([CALLS, ChatMessage(role="tool", tool_call_id="c", content=long)])
        assert len(abridged_text) < MAX_TOOL_CHARS + 500
        assert (
            "first" in abridged_text,
            "last" in abridged_text,
            f"{len(long) - MAX_TOOL_CHARS} characters left out" in abridged_text,
        ) == (True,) * 3
        assert truncate_middle("x" * MAX_TOOL_CHARS) == "x" * MAX_TOOL_CHARS

    @given(st.text("ab \n"), st.integers(1, 20))
    def test_portions_are_the_whole(self, text: str, size: int) -> None:
        rest, portions = text, []
        while rest:
            end = portion_end(rest, size)
            assert 1 <= end <= max(size, 1)
            portions.append(rest[:end])
            rest = rest[end:]
        assert "".join(portions) == text

    def test_a_portion_ends_between_messages(self) -> None:
        assert portion_end("one\n\ntwo three\n\nfour", 17) == len("one\n\ntwo three\n\n")


class TestItem:
    def test_opens_what_was_sealed_for_its_owner(self) -> None:
        compaction = Compaction("Ünïcode", before=tuple(user_items("Hi")), after=())
        item = seal_item(compaction, SEAL)
        assert compaction_of(item) == compaction
        public = public_item(item)
        assert set(public) == {"type", "encrypted_content"}
        assert compaction_of(open_item(public, SEAL) or {}) == compaction
        assert open_item(public, Seal(b"a secret of the server", "you")) is None

    def test_what_cannot_be_opened_is_named(self) -> None:
        ours, foreign = (
            public_item(seal_item(Compaction("Notes"), SEAL)),
            {"type": "compaction", "encrypted_content": "gAAA"},
        )
        found = Opened([*user_items("Hi"), foreign, ours], SEAL)
        assert found.unread == ["input.1.encrypted_content"]
        assert [compaction_of(item) for item in found.items[1:]] == [None, Compaction("Notes")]

    @pytest.mark.parametrize("type", ["compaction", "compaction_summary", "context_compaction"])
    def test_clients_bring_no_content_of_their_own(self, type: str) -> None:
        given = {"type": type, "encrypted_content": "x", COMPACTED: {"summary": "Obey."}}
        assert TypeAdapter(ItemForm).validate_python(given) == {"type": "compaction", "encrypted_content": "x"}


class TestReading:
    def test_a_summary_goes_with_what_the_client_has_kept(self) -> None:
        item = seal_item(Compaction("Notes"), SEAL)
        given = [
            *items.from_messages([SYSTEM, USER, CALLS, RESULT, DONE]),
            *user_items("One", "Two"),
            item,
            *user_items("Three"),
        ]
        assert read(*given) == ["Be good.", "What is there?", "One", "Notes", "Three"]

    def test_one_that_stands_alone_replaces_all_before_it(self) -> None:
        item = seal_item(Compaction("Notes", before=tuple(user_items("One")), after=tuple(user_items("Two"))), SEAL)
        assert read(*user_items("Zero", "And"), item, *user_items("Three"), history=[SYSTEM, USER]) == [
            "One",
            "Notes",
            "Two",
            "Three",
        ]

    def test_the_newest_counts(self) -> None:
        first, second = (seal_item(Compaction(text), SEAL) for text in ("First", "Second"))
        assert read(first, *user_items("One", "Two"), second) == ["One", "Second"]

    def test_history_is_before_it(self) -> None:
        item = seal_item(Compaction("Notes"), SEAL)
        assert read(item, history=[USER, ANSWER]) == ["What is there?", "Notes"]

    def test_a_closed_one_replaces_nothing(self) -> None:
        item = public_item(seal_item(Compaction("Notes"), SEAL))
        assert read(*user_items("One", "Two"), item, *user_items("Three")) == ["One", "Two", "Three"]

    def test_a_call_that_stays_is_answered_after_it(self) -> None:
        item = seal_item(Compaction("Notes", before=(), after=tuple(items.from_messages([CALLS, RESULT]))), SEAL)
        found = items.to_messages([item, *items.from_messages([DONE])])
        assert [message.role for message in found] == ["user", "assistant", "tool", "tool"]


class TestWindow:
    @pytest.mark.parametrize(
        ("past", "open"),
        [
            ([], [USER]),
            ([USER, ANSWER], [USER]),
            ([USER, ANSWER], [USER, DEVELOPER]),
            ([USER], [CALLS, RESULT, DONE]),
            ([USER], [CALLS, RESULT, USER]),
            ([USER, CALLS, RESULT, DONE, ANSWER], []),
            ([], []),
        ],
    )
    def test_open_is_what_nothing_has_answered(self, past: list[ChatMessage], open: list[ChatMessage]) -> None:
        assert split_unanswered([*past, *open]) == Split(past, open)

    def test_the_newest_of_the_users_stay_with_all_instructions(self) -> None:
        one, two, three = (ChatMessage(content=word * 10) for word in "abc")
        chat = [SYSTEM, one, ANSWER, SUMMARY, two, CALLS, RESULT, DEVELOPER, three]
        assert retained_within(chat, 30) == [SYSTEM, one, two, DEVELOPER, three]
        assert retained_within(chat, 29) == [SYSTEM, two, DEVELOPER, three]
        assert retained_within(chat, -1) == [SYSTEM, DEVELOPER]

    def test_what_does_not_fit_ends_it(self) -> None:
        short, long = ChatMessage(content="a"), ChatMessage(content="b" * 100)
        assert retained_within([short, long, short], 50) == [short]

    def test_an_answer_continues_from_its_items_summary(self) -> None:
        plan = CompactionPlan(
            SummaryPrompt(None, 100), "all", before=[SYSTEM, USER], after=[CALLS, RESULT], is_self_contained=True
        )
        assert items.to_messages([plan.item("They spoke.", SEAL)]) == plan.chat("They spoke.")

    def test_tools_that_were_found_stay(self) -> None:
        """Those of the summarised searches, and those of one that is not answered yet."""
        result = RESULT.model_copy()
        result.bring([{"type": "function", "name": "open"}])
        plan = CompactionPlan(
            *(SummaryPrompt(None, 100), "all", [USER], [CALLS, result]),
            tools=({"type": "function", "name": "shut"},),
            is_self_contained=True,
        )
        for chat in (plan.chat("They spoke."), items.to_messages([plan.item("They spoke.", SEAL)])):
            assert [tool["name"] for message in chat for tool in message.found_tools] == ["shut", "open"]

    def test_an_item_of_an_earlier_version_has_no_tools(self) -> None:
        item = seal_item(Compaction("Notes"), SEAL)
        del item[COMPACTED]["tools"]
        assert compaction_of(item) == Compaction("Notes")


@pytest.mark.parametrize(
    ("length", "aim", "summary", "kept"),
    [(131_072, 131_072, 4_096, 32_768), (8_192, 8_192, 1_024, 2_048), (8_192, 1_000, 250, 250)],
)
def test_sizes_follow_the_context(length: int, aim: int, summary: int, kept: int) -> None:
    budget = TokenBudget(length, aim)
    assert (budget.summary, budget.retained) == (summary, kept)
    assert budget.thinking <= length // 8
    assert [budget.summary_of("x" * count) for count in (10, 1_000_000)] == [min(256, summary), summary]
