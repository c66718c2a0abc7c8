"""An engine that says what it is asked to say: what the last line has after `say:`, with `\\n` as line ends.

Where the line has `count` too, it goes on with numbers until it is stopped.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from itertools import count
from typing import Any

from examples.echo_engine import EchoEngine, Letters
from services.engine.base import Job, Message, Piece

FOREVER = "count"
PROMPT = "prompt?"  # is answered with the whole prompt
PACE_S = 0.02  # of an answer that goes on until it is stopped: not all of it is there at once


class Tokens(Letters):
    """Its template marks thoughts, so that a model with it is one that thinks."""

    chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}<think></think>"

    def apply_chat_template(self, conversation: Sequence[Message], **kwargs: Any) -> str:
        return "".join(f"{message['role']}|{message['content']}\n" for message in conversation)


class ScriptedEngine(EchoEngine):
    def __init__(self, max_length: int) -> None:
        super().__init__(max_length)
        self.tokenizer = Tokens()

    @classmethod
    def load(cls, *, source: str, max_model_len: int = 100_000) -> "ScriptedEngine":
        return cls(max_model_len)

    async def _echo(self, prompt: str, job: Job) -> AsyncGenerator[Piece, None]:
        asked = prompt.rstrip("\n").rpartition("\n")[2]
        said = asked.partition("say:")[2].replace("\\n", "\n")
        text = prompt if PROMPT in asked else said
        for letter in text[: job.sampling.max_tokens]:
            yield Piece(letter, (ord(letter),))
        for number in count() if FOREVER in asked else ():
            await asyncio.sleep(PACE_S)
            yield Piece(f"{number}, ", (ord("0"),))
        is_cut = job.sampling.max_tokens is not None and len(text) > job.sampling.max_tokens
        yield Piece("", finish="length" if is_cut else "stop")
