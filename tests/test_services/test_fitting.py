from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.chat_schema import ChatMessage
from services.chat.compaction.window import Chat
from services.chat.request.fitting import shortened

CALL: dict[str, Any] = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SYSTEM = ChatMessage(role="system", content="s")
USER = ChatMessage(role="user", content="u")
ANSWER = ChatMessage(role="assistant", content="a")
CALLS = ChatMessage(role="assistant", tool_calls=[CALL])
RETURNED = ChatMessage(role="tool", tool_call_id="c", content="r")


def at_most(count: int) -> Callable[[Chat], Awaitable[bool]]:
    async def fits(messages: Chat) -> bool:
        return len(messages) <= count

    return fits


async def test_what_fits_is_left_alone() -> None:
    assert await shortened([USER, ANSWER, USER], at_most(3)) == [USER, ANSWER, USER]


async def test_instructions_stay() -> None:
    assert await shortened([SYSTEM, USER, ANSWER, USER], at_most(3)) == [SYSTEM, USER]


async def test_calls_go_with_what_they_returned() -> None:
    chat = [USER, CALLS, RETURNED, ANSWER, USER, ANSWER, USER]
    assert await shortened(chat, at_most(6)) == [USER, ANSWER, USER]


async def test_the_newest_of_the_users_must_fit() -> None:
    assert await shortened([USER, ANSWER, USER, CALLS, RETURNED], at_most(2)) is None


@given(st.lists(st.sampled_from([SYSTEM, USER, ANSWER]), max_size=12), st.integers(0, 12))
async def test_what_is_kept_fits_and_is_most_of_what_could_be(chat: list[ChatMessage], size: int) -> None:
    kept = await shortened(chat, at_most(size))
    options = [chat[cut:] for cut in range(len(chat)) if cut == 0 or chat[cut].role == "user"] or [[]]
    whole = [option + [each for each in chat[: len(chat) - len(option)] if each.role == "system"] for option in options]
    fitting = [option for option in whole if len(option) <= size]
    if kept is None:
        assert fitting == []
        return
    assert len(kept) <= size
    assert len(kept) in map(len, whole)
    users = [sum(each.role == "user" for each in option) for option in (fitting[0], kept)]
    assert users[1] >= users[0] * 3 / 4


@pytest.mark.parametrize(("size", "turns"), [(10, 1), (20, 2), (50, 4), (100, 8)])
async def test_a_long_chat_is_cut_at_the_same_place_for_several_turns(size: int, turns: int) -> None:
    chat = [SYSTEM]
    beginnings = []
    for turn in range(3 * size):
        chat += [ChatMessage(role="user", content=str(turn)), ANSWER]
        kept = await shortened(chat[:-1], at_most(size))
        assert kept is not None
        beginnings.append(str(kept[1].content))
    assert max(Counter(beginnings[size:]).values()) == turns
