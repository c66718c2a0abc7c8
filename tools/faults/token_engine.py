"""An engine without a model, as quick as a GPU: every step each of its sequences gets a token.

PARLEY_MODEL__ENGINE=tools.faults.token_engine:TokenEngine PARLEY_MODEL__ENGINE_OPTIONS='{"step_s": 0.02}'

The tokens are letters, and each depends on the prompt and its place alone.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from services.engine.base import EngineStats, Job, Message, Piece, Times
from services.engine.execution.piece_stream import Mailbox, PieceStream
from services.errors import Unavailable


class Letters:
    """A tokenizer whose tokens are code points."""

    chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(map(ord, text))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(map(chr, token_ids))

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return list(map(chr, ids))

    def __len__(self) -> int:
        return 0x11_0000

    def apply_chat_template(self, conversation: Sequence[Message], **kwargs: Any) -> str:
        return "".join(f"{message['content']}\n" for message in conversation)


@dataclass(slots=True, eq=False)
class Answering:
    job: Job
    mailbox: Mailbox = field(default_factory=Mailbox)
    submitted_at: float = field(default_factory=time.monotonic)
    started_at: float = 0.0
    num_sampled: int = 0


class TokenEngine:
    device, dtype, images, resumes = "none", "none", None, True

    def __init__(self, step_s: float, max_num_seqs: int, max_length: int = 8192) -> None:
        self.tokenizer = Letters()
        self.max_length = max_length
        self._step_s = step_s
        self._max_num_seqs = max_num_seqs
        self._waiting: list[Answering] = []
        self._running: list[Answering] = []
        self._task: asyncio.Task[None] | None = None
        self._added = asyncio.Event()

    @classmethod
    def load(cls, *, source: str, max_num_seqs: int = 32, step_s: float = 0.02) -> "TokenEngine":
        """`step_s`: seconds a step; 0: as quick as the event loop."""
        return cls(step_s, max_num_seqs)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        for sequence in [*self._running, *self._waiting]:
            sequence.mailbox.put_nowait(Unavailable("The model is being unloaded"))

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._running), waiting=len(self._waiting))

    async def submit(self, job: Job) -> AsyncGenerator[Piece, None]:
        sequence = Answering(job, num_sampled=len(job.sampled))
        self._waiting.append(sequence)
        self._added.set()
        return PieceStream(sequence.mailbox, lambda: self._cancel(sequence))

    def _cancel(self, sequence: Answering) -> None:
        for each in (self._waiting, self._running):
            if sequence in each:
                each.remove(sequence)

    async def _run(self) -> None:
        due = time.monotonic()
        while True:
            if not (self._waiting or self._running):
                self._added.clear()
                await self._added.wait()
                due = time.monotonic()
            while self._waiting and len(self._running) < self._max_num_seqs:
                self._running.append(self._waiting.pop(0))
            for sequence in list(self._running):
                self._step(sequence)
            due = max(due + self._step_s, time.monotonic() - self._step_s)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _step(self, sequence: Answering) -> None:
        now = time.monotonic()
        sequence.started_at = sequence.started_at or now
        token = letter(sequence.job.prompt, sequence.num_sampled)
        sequence.num_sampled += 1
        is_last = sequence.num_sampled >= (sequence.job.sampling.max_tokens or 64)
        times = Times(sequence.started_at - sequence.submitted_at, 0.0, now - sequence.started_at) if is_last else None
        sequence.mailbox.put_nowait(Piece(chr(token), (token,), "length" if is_last else None, times=times))
        if is_last:
            self._running.remove(sequence)


def letter(prompt: Sequence[int], place: int) -> int:
    seed = bytes(token & 255 for token in prompt[-64:]) + place.to_bytes(4, "little")
    return 97 + blake2b(seed, digest_size=2).digest()[0] % 26
