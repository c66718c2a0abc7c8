"""Images of tools' results go to the user's message after them."""

from typing import Any

from services.chat.request.tool_images import SHOWN_BELOW, shown_by_user
from tests.pictures import RED

TEXT = {"type": "text", "text": "t"}
OTHER = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def tool(content: object) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "c", "content": content}


def test_messages_without_them_stay_as_they_are() -> None:
    messages = [{"role": "user", "content": [TEXT, RED]}, {"role": "assistant", "content": "a"}, tool("r")]
    assert shown_by_user(messages) == messages


def test_results_of_one_turn_share_a_message_in_their_order() -> None:
    messages = [tool([TEXT, RED]), tool("r"), tool([OTHER]), {"role": "assistant", "content": "a"}]
    assert shown_by_user(messages) == [
        tool("t"),
        tool("r"),
        tool(SHOWN_BELOW),
        {"role": "user", "content": [RED, OTHER]},
        {"role": "assistant", "content": "a"},
    ]


def test_the_next_user_text_joins_the_same_message() -> None:
    messages = [tool([RED]), {"role": "user", "content": "u"}, {"role": "user", "content": "v"}]
    assert shown_by_user(messages)[1:] == [
        {"role": "user", "content": [RED, {"type": "text", "text": "u"}]},
        {"role": "user", "content": "v"},
    ]
