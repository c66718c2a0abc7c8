"""Which requests are to be served where others were."""

from typing import Any

from schemas.chat_schema import ChatMessage
from services import affinity
from services.chat import items
from services.history.turn import TurnRequest

SYSTEM = ChatMessage(role="system", content="Be brief.")
FIRST = ChatMessage(role="user", content="hi")
LATER = [ChatMessage(role="assistant", content="hello"), ChatMessage(role="user", content="and now?")]


def of(*messages: ChatMessage, owner: str = "me", **fields: Any) -> str:
    turn = TurnRequest(owner=owner, input=items.from_messages(messages), **fields)
    return affinity.of_answer(f"resp_{turn.new_reply_id()}")


def test_turns_of_a_conversation_have_the_same() -> None:
    assert of(SYSTEM, FIRST) == of(SYSTEM, FIRST, *LATER)
    assert of(FIRST) == of(FIRST, *LATER)
    assert of(FIRST, conversation="a") == of(*LATER, conversation="a")


def test_others_have_another() -> None:
    other = ChatMessage(role="user", content="ho")
    found = [of(SYSTEM, FIRST), of(FIRST), of(other), of(SYSTEM, other), of(SYSTEM), of(FIRST, owner="you")]
    found += [of(FIRST, instructions="Be brief."), of(FIRST, cache_key="a"), of(FIRST, conversation="a", owner="you")]
    assert len(set(found)) == len(found)


def test_keys_have_an_order() -> None:
    root = TurnRequest(owner="me").new_reply_id()
    every = {"conversation": "a", "previous": f"resp_{root}", "cache_key": "k"}
    assert of(FIRST, **every) == of(FIRST, conversation="a")
    assert of(FIRST, previous=f"resp_{root}", cache_key="k") == affinity.of_answer(root)
    token = affinity.current.set(affinity.of_session("mine"))
    try:
        assert of(FIRST, **every) == affinity.of_session("mine")
    finally:
        affinity.current.reset(token)


def test_all_of_a_chain_have_the_key_of_its_root() -> None:
    first = TurnRequest(owner="me", input=items.from_messages([SYSTEM, FIRST]), cache_key="k").new_reply_id()
    second = TurnRequest(owner="me", previous=f"resp_{first}").new_reply_id()
    third = TurnRequest(owner="me", previous=f"resp_{second}").new_reply_id()
    assert len({affinity.of_answer(each) for each in (first, second, third)}) == 1
    assert len({first, second, third}) == 3
