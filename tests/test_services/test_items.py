import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from schemas.chat_schema import ChatMessage
from schemas.item_schema import Item
from services.chat import items
from services.errors import InvalidRequest


class Given(BaseModel):
    input: list[Item]


def given_items(*values: dict[str, Any]) -> list[items.Item]:
    return Given(input=list(values)).input


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ROLES = st.sampled_from(["user", "system", "developer"])
TEXT_PARTS = st.builds(lambda text: {"type": "text", "text": text}, TEXT)
REFUSAL_PARTS = st.builds(lambda text: {"type": "refusal", "refusal": text}, TEXT)
CONTENT = TEXT | st.lists(TEXT_PARTS, min_size=2, max_size=3)
ANSWERS = CONTENT | st.builds(lambda some, last: [*some, last], st.lists(REFUSAL_PARTS, max_size=2), TEXT_PARTS).filter(
    lambda parts: len(parts) > 1
)
CALLS = st.builds(
    lambda id, name, arguments: {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}},
    st.text("ab12_", min_size=1, max_size=8),
    st.text("xyz", min_size=1, max_size=8),
    TEXT,
)


def message(**fields: Any) -> ChatMessage:
    return ChatMessage(**{name: value for name, value in fields.items() if value not in (None, "", [])} | _said(fields))


def _said(fields: dict[str, Any]) -> dict[str, Any]:
    """Empty content is content too."""
    return {"content": fields["content"]} if fields.get("content") is not None else {}


NAMES = st.none() | st.just("Ada")
ASKED = st.builds(message, role=ROLES, content=CONTENT, name=NAMES)
ANSWERED = st.builds(
    message,
    role=st.just("assistant"),
    content=ANSWERS,
    refusal=st.none() | st.text("no", min_size=1),
    reasoning_content=st.none() | TEXT,
    tool_calls=st.lists(CALLS, max_size=2),
)
REFUSED = st.builds(message, role=st.just("assistant"), refusal=st.text("no", min_size=1))
CALLED = st.builds(message, role=st.just("assistant"), tool_calls=st.lists(CALLS, min_size=1, max_size=2))
RETURNED = st.builds(
    message,
    role=st.just("tool"),
    content=TEXT | st.lists(TEXT_PARTS, min_size=1),
    tool_call_id=st.text("ab", min_size=1),
)


def merges(first: ChatMessage, second: ChatMessage) -> bool:
    says_nothing = second.content is None and second.refusal is None and not second.reasoning_content
    return first.role == "assistant" == second.role and says_nothing


CHATS = st.lists(ASKED | ANSWERED | REFUSED | CALLED | RETURNED, max_size=6).filter(
    lambda chat: not any(merges(*pair) for pair in itertools.pairwise(chat))
)


@given(CHATS)
def test_a_chat_comes_back_from_its_items_as_it_was(chat: list[ChatMessage]) -> None:
    assert items.to_messages(items.from_messages(chat)) == chat


@given(CHATS)
def test_items_come_back_from_their_chat_as_they_were(chat: list[ChatMessage]) -> None:
    written = items.from_messages(chat)
    assert items.from_messages(items.to_messages(written)) == written


@given(CHATS)
def test_items_are_read_in_the_form_in_which_they_are_written(chat: list[ChatMessage]) -> None:
    written = items.from_messages(chat)
    assert given_items(*written) == written


def test_easy_messages_become_whole_ones() -> None:
    assert given_items({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}) == [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Ho", "annotations": [], "logprobs": []}],
        },
    ]


def test_calls_that_follow_a_text_belong_to_its_message() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    input_items = given_items(
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"role": "assistant", "content": "Let me see"},
        call,
        call | {"call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
        call | {"call_id": "c3"},
    )
    first, one, two, second = items.to_messages(input_items)
    assert (first.content, first.reasoning_content, [each.id for each in first.tool_calls]) == (
        "Let me see",
        "Hm.",
        ["c1", "c2"],
    )
    assert (one.tool_call_id, one.content) == ("c1", "1")
    assert (two.tool_call_id, two.content) == ("c2", [{"type": "text", "text": "2"}])
    assert [each.id for each in second.tool_calls] == ["c3"]


def test_a_text_after_calls_is_a_message_of_its_own() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    first, second = items.to_messages(given_items(call, {"role": "assistant", "content": "Done"}))
    assert (first.content, len(first.tool_calls), second.content) == (None, 1, "Done")


def test_reasoning_that_was_cut_short_is_kept() -> None:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]}
    first, _ = items.to_messages(given_items(thought, {"role": "user", "content": "And?"}))
    assert (first.role, first.content, first.reasoning_content) == ("assistant", "", "Hm")


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "video_call", "id": "vc_1"}, "input.0.type"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "input.0.content.0"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "input.0.content.0"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "u", "file_id": "f"}]}, "input.0.content.0"),
        ({"role": "user", "content": [{"type": "input_file", "filename": "a"}]}, "input.0.content.0"),
        (
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file"}]},
            "input.0.output.0",
        ),
        ({"id": "msg_1"}, "input.0.type"),
    ],
)
def test_what_no_prompt_can_have_is_refused_by_name(item: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        items.to_messages(given_items(item))
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("item", "place"),
    [
        ({"role": "nobody", "content": "x"}, ("input", 0, "role")),
        ({"role": "user"}, ("input", 0, "content")),
        ({"role": "user", "content": [{"type": "input_text"}]}, ("input", 0, "content", 0, "text")),
        ({"type": "function_call", "call_id": "c", "arguments": "{}"}, ("input", 0, "name")),
        ({"type": "function_call_output", "call_id": "c", "output": 1}, ("input", 0, "output")),
        ("hello", ("input", 0)),
        ({"type": 5}, ("input", 0, "type")),
        ({"type": ["x"]}, ("input", 0, "type")),
    ],
)
def test_a_malformed_item_names_its_place(item: dict[str, Any], place: tuple[str | int, ...]) -> None:
    with pytest.raises(ValidationError) as refused:
        given_items(item)
    assert refused.value.errors()[0]["loc"] == place


def test_unknown_items_are_kept_whole() -> None:
    item = {"type": "mcp_call", "id": "m", "arguments": "{}", "tools": [{"a": [1, {"b": True}]}]}
    assert given_items(item) == [item]


def test_an_image_is_a_part_of_the_chat() -> None:
    given = given_items({"role": "user", "content": [{"type": "input_image", "image_url": "data:x", "detail": "low"}]})
    part = {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}}
    (message,) = items.to_messages(given)
    assert message.model_dump(include={"content"}, exclude_unset=True) == {"content": [part]}
    assert items.from_messages([message])[0]["content"] == given[0]["content"]


def test_ids_have_the_prefix_of_their_type() -> None:
    kinds = ["message", "function_call", "function_call_output", "reasoning", "mcp_call"]
    assert [items.new_id({"type": kind}).split("_")[0] for kind in kinds] == ["msg", "fc", "fco", "rs", "item"]
