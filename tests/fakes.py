"""Fakes: an engine that answers its script, and a byte tokenizer."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from database.usage_repository import Usage
from services.engine.base import EngineStats, FinishReason, ImageReader, Job, Message, Piece, Tokenizer
from services.errors import PromptTooLong, ServiceError, Unavailable
from services.history.usage_ledger import UsageLedger

TEMPLATE = """\
{% for message in messages %}
{% if loop.first and message.role == "assistant" %}
{{ raise_exception("an answer cannot come first") }}
{% endif %}
<{{ message.role }}>{{ message.content }}
{% endfor %}
{% if add_generation_prompt %}
<assistant>
{% endif %}
"""


class FakeTokenizer:
    def __init__(self, chat_template: str | None = TEMPLATE) -> None:
        self.chat_template = chat_template

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return bytes(token_ids).decode(errors="replace")

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [chr(token) for token in ids]

    def __len__(self) -> int:
        return 256

    def apply_chat_template(self, conversation: Sequence[Message], **kwargs: Any) -> list[int] | str:
        assert self.chat_template
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise
        template = environment.from_string(self.chat_template)
        text = template.render(messages=conversation, **kwargs)
        if kwargs.get("continue_final_message"):
            last = conversation[-1]["content"]
            text = text[: text.rindex(last) + len(last)]
        return self.encode(text) if kwargs.get("tokenize", True) else text


def _raise(message: str) -> None:
    raise TemplateError(message)


class Pause:
    """A step at which an engine waits until `go` is set."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.go = asyncio.Event()


Step = str | Piece | Exception | Pause


class FakeStream(AsyncGenerator[Piece, None]):
    def __init__(self, engine: "FakeEngine", steps: Iterator[Step]) -> None:
        self._engine = engine
        self.steps = steps

    async def asend(self, value: None, /) -> Piece:
        if self not in self._engine.running:
            raise StopAsyncIteration
        try:
            return await self._next()
        except BaseException:
            self._close()
            raise

    async def _next(self) -> Piece:
        for step in self.steps:
            match step:
                case str():
                    return Piece(step, token_ids=(0,))
                case Piece():
                    return step
                case Exception():
                    raise step
                case Pause():
                    step.reached.set()
                    await step.go.wait()
                    if self._engine.stopped:
                        raise Unavailable("The server is shutting down")
        raise StopAsyncIteration

    async def athrow(self, typ: Any, val: Any = None, tb: Any = None, /) -> Piece:
        self._close()
        raise typ

    async def aclose(self) -> None:
        self._close()

    def _close(self) -> None:
        self._engine.running.discard(self)
        if not self._engine.running:
            self._engine.idle.set()


class FakeEngine:
    """Says `script` to every job, then finishes; `refusal` is raised instead of taking a job."""

    device = "fake"
    dtype = "float32"

    def __init__(self, *script: Step, finish: FinishReason | None = "stop", max_length: int = 4096) -> None:
        self.tokenizer: Tokenizer = FakeTokenizer()
        self.images: ImageReader | None = None
        self.script = script
        self.finish = finish
        self.max_length = max_length
        self.refusal: ServiceError | None = None
        self.jobs: list[Job] = []
        self.running: set[FakeStream] = set()
        self.idle = asyncio.Event()
        self.starts = 0
        self.stopped = True
        self.stalled = False
        self.lost = False

    def start(self) -> None:
        self.starts += 1
        self.stopped = False

    async def stop(self) -> None:
        self.stopped = True
        for step in self.script:
            if isinstance(step, Pause):
                step.go.set()

    async def submit(self, job: Job) -> FakeStream:
        if self.refusal:
            raise self.refusal
        if self.stopped:
            raise Unavailable("The model is being unloaded")
        if len(job.prompt) >= self.max_length:
            raise PromptTooLong(len(job.prompt), self.max_length, param=job.param)
        self.jobs.append(job)
        return self.open()

    def open(self) -> FakeStream:
        end = [Piece("", finish=self.finish)] if self.finish else []
        stream = FakeStream(self, iter([*self.script, *end]))
        self.running.add(stream)
        self.idle.clear()
        return stream

    def stats(self) -> EngineStats:
        used = 10 * len(self.running)
        return EngineStats(
            running=len(self.running), cache_used=used, cache_size=100, stalled=self.stalled, lost=self.lost
        )

    @property
    def prompts(self) -> list[str]:
        """The prompts of its jobs, as text."""
        return [bytes(job.prompt).decode() for job in self.jobs]

    def builder(self) -> Callable[..., "FakeEngine"]:
        """For `build=`: returns this engine."""
        return lambda kind, /, **options: self


class NotingEngine(FakeEngine):
    """Says `notes` where it is to write a summary, and `script` to all others."""

    def __init__(self, *script: Step, notes: Sequence[Step] = ("The ", "notes."), max_length: int = 8_192) -> None:
        super().__init__(*script, max_length=max_length)
        self.notes = notes

    def open(self) -> FakeStream:
        script, self.script = self.script, self.notes if self.is_noting else self.script
        try:
            return super().open()
        finally:
            self.script = script

    @property
    def is_noting(self) -> bool:
        """At the newest job."""
        return "<conversation>" in self.prompts[-1]


class FakeLedger(UsageLedger):
    """Keeps what is recorded."""

    def __init__(self) -> None:
        self.usage: list[Usage] = []

    async def record(self, usage: Usage) -> None:
        self.usage.append(usage)
