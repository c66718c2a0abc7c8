from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from schemas.chat_schema import ChatMessage
from services.chat.request.fitting import Chat, shortened

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
async def test_no_more_is_dropped_than_must_be(chat: list[ChatMessage], size: int) -> None:
    kept = await shortened(chat, at_most(size))
    options = [chat[cut:] for cut in range(len(chat)) if cut == 0 or chat[cut].role == "user"] or [[]]
    sizes = [len(option) + sum(each.role == "system" for each in chat[: len(chat) - len(option)]) for option in options]
    fitting = [each for each in sizes if each <= size]
    assert (None if kept is None else len(kept)) == (max(fitting) if fitting else None)
