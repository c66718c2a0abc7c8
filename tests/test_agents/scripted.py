"""A model that says what is written in a folder: real tokens, real sampling, real grammars, no weights."""

import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.engine.base import Image, Picture
from services.engine.execution.local_executor import LocalExecutor
from services.engine.loading.loader import Loaded
from services.engine.local import LocalEngine
from services.engine.scheduling.step import CacheChange, ClearSlot, CopySlot, StepRow, SwapSlots
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

    def encode(self, row: StepRow) -> None: ...


@dataclass(frozen=True, slots=True)
class Script:
    prompt_length: int
    line: list[int]


@dataclass
class ScriptedRunner:
    answer: Callable[[str], str]
    tokenizer: Any
    length: int
    num_slots: int = 4
    reuses: bool = True
    snapshots: Any = None
    supports_drafts: bool = False
    cache_tokens: int | None = None
    vision: Any = None
    page_size: int = 1
    short_length: int | None = None
    asynchronous: bool = False
    batch_sizes: list[int] = field(default_factory=lambda: [1])
    texts: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))  # the tokens in each slot
    scripts: dict[str, Script] = field(default_factory=dict)  # of each request

    def apply(self, changes: list[CacheChange]) -> None:
        for change in changes:
            match change:
                case CopySlot(source, target, length):
                    self.texts[target] = self.texts[source][:length]
                case SwapSlots(one, other):
                    self.texts[one], self.texts[other] = self.texts[other], self.texts[one]
                case ClearSlot(slot, start):
                    del self.texts[slot][start:]

    def compilation(self, source: object, folder: Path) -> None:
        return None

    def run_lookahead(self, rows: list[StepRow], tokens: Tensor) -> None:
        return None

    def run(self, rows: list[StepRow]) -> Tensor:
        for row in rows:
            self.texts[row.slot][row.start :] = row.token_ids
        following = [self._following(row.request_id, self.texts[row.slot]) for row in rows if row.num_logits]
        logits = torch.zeros(len(following), len(self.tokenizer))
        logits[range(len(following)), following] = CERTAIN
        return logits

    def _following(self, request: str, text: list[int]) -> int:
        """The first text of a request that is asked for is its prompt."""
        if request not in self.scripts:
            said = self.answer(self.tokenizer.decode(text))
            line = [*self.tokenizer.encode(said), self.tokenizer.eos_token_id]
            self.scripts[request] = Script(len(text), line)
        script = self.scripts[request]
        said_so_far = text[script.prompt_length :]
        if said_so_far != script.line[: len(said_so_far)]:
            wrong = self.tokenizer.decode(said_so_far[-8:])
            raise RuntimeError(f"the form of the answer does not take the script: {wrong!r} was sampled")
        return script.line[len(said_so_far)]


def builder(folder: Path) -> Callable[..., LocalEngine]:
    """For `build=`. A model's source is its length in tokens; it sees where it has a `+` behind it."""

    def build(kind: str, /, *, source: str, **options: object) -> LocalEngine:
        qwen = tokenizer("qwen3")
        length = int(source.rstrip("+"))
        vision = Sight(Reader(qwen.convert_tokens_to_ids(PAD))) if source.endswith("+") else None
        runner = ScriptedRunner(Scripts(folder).answer, qwen, length, vision=vision)
        end, place = frozenset([qwen.eos_token_id]), torch.device("cpu")
        loaded = Loaded(None, qwen, end, length, place, torch.float32, len(qwen))
        return LocalEngine(loaded, LocalExecutor(runner), max_num_batched_tokens=length, max_queue=8)

    return build
