"""Earlier calls for chat templates that know one call a message: each in a message, with its result behind it."""

from collections.abc import Iterator, Sequence
from itertools import takewhile

from services.engine.base import Message


def single_calls(messages: Sequence[Message]) -> Iterator[Message]:
    moved: list[Message] = []
    for place, message in enumerate(messages):
        if len(message.get("tool_calls", ())) > 1:
            apart = list(_apart(message, messages[place + 1 :]))
            moved += [each for each in apart if each["role"] == "tool"]
            yield from apart
        elif not any(message is each for each in moved):
            yield message


def _apart(message: Message, following: Sequence[Message]) -> Iterator[Message]:
    results = {each["tool_call_id"]: each for each in takewhile(lambda each: each["role"] == "tool", following)}
    carrier = message
    for call in message["tool_calls"]:
        yield {**carrier, "tool_calls": [call]}
        carrier = {"role": message["role"], "content": ""}
        if call["id"] in results:
            yield results[call["id"]]
