"""An engine that says what it is asked to say: what the last line has after `say:`, with `\\n` as line ends.

Where the line has `count` too, it goes on with numbers until it is stopped.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import count
from pathlib import Path
from typing import Any

from examples.echo_engine import EchoEngine, Letters
from services.engine.base import EngineStats, Job, Message, Piece
from services.engine.loading import progress
from tests.pictures import FakeReader

FOREVER = "count"
PROMPT = "prompt?"  # is answered with the whole prompt
PACE_S = 0.02  # of an answer that goes on until it is stopped: not all of it is there at once


class Tokens(Letters):
    """Its template marks thoughts, so that a model with it is one that thinks."""

    chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}<think></think>"

    def apply_chat_template(self, conversation: Sequence[Message], **kwargs: Any) -> str:
        text = "".join(f"{message['role']}|{message['content']}\n" for message in conversation)
        return f"{text[:-1]}say:and on" if kwargs.get("continue_final_message") else text


class ScriptedEngine(EchoEngine):
    def __init__(self, max_length: int) -> None:
        super().__init__(max_length)
        self.tokenizer = Tokens()
        self.images = FakeReader()
        self._running = 0

    @classmethod
    def load(cls, *, source: str, max_model_len: int = 100_000) -> "ScriptedEngine":
        return cls(max_model_len)

    def stats(self) -> EngineStats:
        return EngineStats(running=self._running)

    async def _echo(self, prompt: str, job: Job) -> AsyncGenerator[Piece, None]:
        self._running += 1
        try:
            async with aclosing(self._script(prompt, job)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._running -= 1

    async def _script(self, prompt: str, job: Job) -> AsyncGenerator[Piece, None]:
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


HOLD = "hold"  # a file in the service's folder: while it is there, a load stands still
TENSORS = 4


class HeldEngine(ScriptedEngine):
    """Half of it is read before the load stands still."""

    @classmethod
    def load(cls, *, source: str, max_model_len: int = 100_000) -> "HeldEngine":
        for number in progress.counted("reading", range(TENSORS)):
            while number == TENSORS // 2 and Path(HOLD).exists():
                time.sleep(0.02)
        progress.report("checking")
        while Path(HOLD).exists():
            time.sleep(0.02)
        return cls(max_model_len)
