"""Which requests are to be served where others were."""

from typing import Any

from services.chat.request.affinity import affinity

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "hi"}
LATER = [{"role": "assistant", "content": "hello"}, {"role": "user", "content": "and now?"}]


def of(*messages: dict[str, Any], key: str | None = None, owner: str = "me") -> str:
    return affinity(key, messages, owner)


def test_turns_of_a_conversation_have_the_same() -> None:
    assert of(SYSTEM, FIRST) == of(SYSTEM, FIRST, *LATER)
    assert of(FIRST) == of(FIRST, *LATER)


def test_others_have_another() -> None:
    other = {"role": "user", "content": "ho"}
    found = [of(SYSTEM, FIRST), of(FIRST), of(other), of(SYSTEM, other), of(SYSTEM), of(FIRST, owner="you")]
    assert len(set(found)) == len(found)


def test_the_clients_own_key_comes_first() -> None:
    assert of(FIRST, key="k") == of(*LATER, key="k") != of(FIRST)
    assert of(FIRST, key="k") != of(FIRST, key="k", owner="you")
