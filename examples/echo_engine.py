"""An engine: it answers with the last line of the prompt, letter by letter, and needs no model.

PARLEY_MODEL__ENGINE=examples.echo_engine:EchoEngine parley serve
curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \
  -d '{"messages": [{"role": "user", "content": "Hello there"}]}'
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from services.engine.base import EngineStats, Job, Message, Piece
from services.errors import PromptTooLong, UnsupportedParameter


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


class EchoEngine:
    device, dtype, images = "none", "none", None

    def __init__(self, max_length: int) -> None:
        self.tokenizer = Letters()
        self.max_length = max_length

    @classmethod
    def load(cls, *, source: str, max_model_len: int = 4096) -> "EchoEngine":
        return cls(max_model_len)

    def start(self) -> None: ...

    async def stop(self) -> None: ...

    def stats(self) -> EngineStats:
        return EngineStats()

    async def submit(self, job: Job) -> AsyncGenerator[Piece, None]:
        if len(job.prompt) >= self.max_length:
            raise PromptTooLong(len(job.prompt), self.max_length, param=job.param)
        sampling = job.sampling
        cannot = {"stop": sampling.stop, "logprobs": sampling.logprobs is not None}
        if (
            param := sampling.grammar.param
            if sampling.grammar
            else next((name for name in cannot if cannot[name]), None)
        ):
            raise UnsupportedParameter(param, "is not what an echo can do")
        return self._echo(self.tokenizer.decode(job.prompt), job)

    async def _echo(self, prompt: str, job: Job) -> AsyncGenerator[Piece, None]:
        line = prompt.rstrip("\n").rpartition("\n")[2]
        tokens = self.tokenizer.encode(line)[: job.sampling.max_tokens]
        for token in tokens:
            yield Piece(chr(token), (token,))
        yield Piece("", finish="stop" if len(tokens) == len(line) else "length")
