"""A model that says what is written in a folder: real tokens, real sampling, real grammars, no weights."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.engine.base import Image, Picture
from services.engine.loading.loader import Loaded
from services.engine.local import LocalEngine
from services.engine.scheduling.scheduler import ScheduledSequence
from services.engine.scheduling.sequence import Sequence
from services.engine.scheduling.slots import CacheChange
from tests.npm_packages import tokenizer

CERTAIN = 1000.0  # as a logit: nothing else is drawn, whatever the temperature
NAMED = re.compile(r"play:([a-z0-9-]+)")
ASKED = "<|im_start|>user\n"
# What asks for a summary: Claude Code, Codex, and this server itself.
SUMMARIES = ("<summary>", "CONTEXT CHECKPOINT COMPACTION", "<conversation>")
ANSWER = "<|im_start|>assistant\n"
PAD = "<|image_pad|>"
RECORD = "record.jsonl"


@dataclass(frozen=True, slots=True)
class Scripts:
    """`NAME.json` is a list of answers to the prompts that name it last: the first one, then one after each of them.

    A wish for a summary is answered by `NAME-summary.json`, whose only line that is.
    What names none, offers no tools or goes beyond the list is answered all the same: agents ask for titles, too.
    """

    folder: Path

    def answer(self, prompt: str) -> str:
        said = self._said(prompt)
        with (self.folder / RECORD).open("a") as record:
            record.write(json.dumps({"prompt": prompt, "said": said}) + "\n")
        return said

    def _said(self, prompt: str) -> str:
        names = list(NAMED.finditer(prompt))
        wants_summary = any(wish in prompt[prompt.rindex(ASKED) :] for wish in SUMMARIES)
        if not names or ("<tools>" not in prompt and not wants_summary):
            return "Some work on files."
        name = names[-1][1]
        if wants_summary:
            (summary,) = self._lines(f"{name}-summary")
            return summary
        lines = self._lines(name)
        step = prompt.count(ANSWER, names[-1].end()) - 1
        return lines[step] if step < len(lines) else "All is done."

    def _lines(self, name: str) -> list[str]:
        lines: list[str] = json.loads((self.folder / f"{name}.json").read_text())
        return lines


@dataclass(frozen=True, slots=True)
class Reader:
    """A picture becomes a token for each of its pixels."""

    token: int
    placeholder: str = PAD

    def read(self, picture: Picture) -> Image:
        size = picture.width * picture.height
        return Image(sha256(picture.data).digest(), PAD * size, size, {})


@dataclass(frozen=True, slots=True)
class Sight:
    """Looks at nothing: what is on a picture does not change what is said."""

    reader: Reader

    def look(self, work: ScheduledSequence) -> None: ...


@dataclass
class ScriptedRunner:
    answer: Callable[[str], str]
    tokenizer: Any
    length: int
    num_slots: int = 4
    reuses: bool = True
    speculates: bool = False
    cache_tokens: int | None = None
    vision: Any = None
    page_size: int = 1
    asynchronous: bool = False
    batch_sizes: list[int] = field(default_factory=lambda: [1])
    lines: dict[Sequence, list[int]] = field(default_factory=dict)

    def change(self, changes: list[CacheChange]) -> None: ...

    def compilation(self, source: object, folder: Path) -> None:
        return None

    def run_lookahead(self, works: list[ScheduledSequence], tokens: Tensor) -> None:
        return None

    def run(self, batch: list[ScheduledSequence]) -> Tensor:
        following = [self._following(work.sequence) for work in batch if work.samples]
        logits = torch.zeros(len(following), len(self.tokenizer))
        logits[range(len(following)), following] = CERTAIN
        return logits

    def _following(self, sequence: Sequence) -> int:
        if sequence not in self.lines:
            said = self.answer(self.tokenizer.decode(sequence.job.prompt))
            self.lines[sequence] = [*self.tokenizer.encode(said), self.tokenizer.eos_token_id]
        line, said_so_far = self.lines[sequence], sequence.tokens[len(sequence.job.prompt) :]
        if said_so_far != line[: len(said_so_far)]:
            wrong = self.tokenizer.decode(said_so_far[-8:])
            raise RuntimeError(f"the form of the answer does not take the script: {wrong!r} was drawn")
        return line[len(said_so_far)]


def builder(folder: Path) -> Callable[..., LocalEngine]:
    """For `build=`. A model's source is its length in tokens; it sees where it has a `+` behind it."""

    def build(kind: str, /, *, source: str, **options: object) -> LocalEngine:
        qwen = tokenizer("qwen3")
        length = int(source.rstrip("+"))
        vision = Sight(Reader(qwen.convert_tokens_to_ids(PAD))) if source.endswith("+") else None
        runner = ScriptedRunner(Scripts(folder).answer, qwen, length, vision=vision)
        end, place = frozenset([qwen.eos_token_id]), torch.device("cpu")
        loaded = Loaded(None, qwen, end, length, place, torch.float32, len(qwen))
        return LocalEngine(loaded, runner, max_num_batched_tokens=length, max_queue=8)

    return build
