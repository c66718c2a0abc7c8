"""Templates that are strict about the order of turns are given messages that they take."""

from typing import Any

import pytest

from services.chat.request import prompt, turn_order
from services.engine.base import Message
from services.errors import InvalidRequest
from tests.fakes import FakeTokenizer

IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}
SAY = "<{{ message.role }}>{{ message.content }}"
ONE_SYSTEM = (
    "{% for message in messages %}{% if message.role == 'system' and not loop.first %}"
    f"{{{{ raise_exception('the system comes first') }}}}{{% endif %}}{SAY}{{% endfor %}}"
)
ALTERNATING = (
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    f"{{{{ raise_exception('roles must alternate') }}}}{{% endif %}}{SAY}{{% endfor %}}"
)
NO_SYSTEM = (
    "{% for message in messages %}{% if message.role == 'system' %}"
    f"{{{{ raise_exception('System role not supported') }}}}{{% endif %}}{SAY}{{% endfor %}}"
)
NEVER = "{{ raise_exception('never') }}{{ messages }}"


def message_list(*turns: tuple[str, Any]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in turns]


def rendered(template: str, *turns: tuple[str, Any]) -> str:
    return prompt.render(message_list(*turns), FakeTokenizer(template), {"add_generation_prompt": True})


@pytest.mark.parametrize(
    ("template", "turns", "expected"),
    [
        (ONE_SYSTEM, [("system", "a"), ("user", "b"), ("user", "c")], "<system>a<user>b<user>c"),
        (ONE_SYSTEM, [("system", "a"), ("system", "b"), ("user", "c")], "<system>a\n\nb<user>c"),
        (ONE_SYSTEM, [("user", "a"), ("system", "b"), ("user", "c")], "<system>b<user>a\n\nc"),
        (ALTERNATING, [("user", "a"), ("user", "b")], "<user>a\n\nb"),
        (ALTERNATING, [("user", "a"), ("assistant", "b"), ("assistant", "c")], "<user>a<assistant>b\n\nc"),
        (NO_SYSTEM, [("system", "a"), ("user", "b")], "<user>a\n\nb"),
        (ALTERNATING, [("system", "a"), ("user", "b"), ("user", "c")], "<user>a\n\nb\n\nc"),
    ],
)
def test_strict_templates_are_given_what_they_take(template: str, turns: list[tuple[str, Any]], expected: str) -> None:
    assert rendered(template, *turns) == expected


def test_what_no_order_helps_is_refused_with_the_first_reason() -> None:
    with pytest.raises(InvalidRequest, match="alternate") as refused:
        rendered(ALTERNATING, ("assistant", "a"))
    assert refused.value.param == "messages"
    with pytest.raises(InvalidRequest, match="never"):
        rendered(NEVER, ("system", "a"), ("user", "b"))


def test_orders_that_are_the_same_are_tried_once() -> None:
    assert len(list(turn_order.orders(message_list(("user", "a"))))) == 1
    assert len(list(turn_order.orders(message_list(("user", "a"), ("user", "b"))))) == 2


def test_nothing_is_lost_where_messages_are_joined() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {}}}
    first = {"role": "assistant", "content": "", "reasoning_content": "x", "tool_calls": [call]}
    second = {"role": "assistant", "content": "a", "reasoning_content": "y", "tool_calls": [call | {"id": "d"}]}
    (joined,) = turn_order.merged([first, second])
    assert (joined["content"], joined["reasoning_content"]) == ("a", "x\n\ny")
    assert [each["id"] for each in joined["tool_calls"]] == ["c", "d"]
    results: list[Message] = [{"role": "tool", "content": "1", "tool_call_id": id} for id in "cd"]
    assert turn_order.merged(results) == results


def test_images_keep_their_places() -> None:
    (joined,) = turn_order.merged(message_list(("user", [IMAGE]), ("user", "what?")))
    assert joined["content"] == [IMAGE, {"type": "text", "text": "\n\n"}, {"type": "text", "text": "what?"}]
