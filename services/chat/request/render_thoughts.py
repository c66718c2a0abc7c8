"""What earlier answers thought, under the name by which the model's chat template reads it."""

from services.chat.formats.base import ChatFormat
from services.engine.base import Message

KEY = "reasoning_content"


def render_thoughts(messages: list[Message], format: ChatFormat) -> list[Message]:
    return [_renamed(each, format) if KEY in each and format.thought_key != KEY else each for each in messages]


def _renamed(message: Message, format: ChatFormat) -> Message:
    rest = {key: value for key, value in message.items() if key != KEY}
    thought = message[KEY]
    # gpt-oss's template takes one text ahead of a call, and refuses two
    if format.tools.answer and message.get("tool_calls") and isinstance(message["content"], str) and message["content"]:
        return {**rest, "content": "", format.thought_key: f"{thought}\n\n{message['content']}"}
    return {**rest, format.thought_key: thought}
