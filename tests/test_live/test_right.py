"""The default model in float32 says what `generate` says: fifty prompts, alone and together, with all on and off."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from services.engine.base import Job, SamplingParams
from services.engine.loading.loader import Source, load
from services.engine.local import LocalEngine
from tests.test_engine.compilers import needs_compiler
from tests.test_engine.tiny_models import generate
from tests.test_live.engine import SOURCE, serving
from tests.test_live.service import MODELS

pytestmark = [pytest.mark.live, pytest.mark.extended, pytest.mark.timeout(900)]

ANSWER = 16  # tokens
TIED = 1e-3  # between two logits: float32 sums in another order may turn them round

TASKS = (
    "Name the planets of the solar system, the nearest to the sun first.",
    "What is the capital of {}?",
    "Say 'the cat sat on the mat' five times.",
    "Translate to French: I would like a cup of tea, please. I would like two cups of tea, please.",
    "Count from one to forty in words.",
    "Write a haiku about {}.",
    "def add(a, b):\n    return a + b\n\ndef subtract(a, b):\n    return a - b\n\ndef multiply(a, b):\n",
    "Explain to a child what {} is famous for, in one sentence.",
    "你好，{}！ Wie heißt du? 👋🏽",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,",
)
PLACES = ("France", "Norway", "Chile", "Kenya", "Japan")
SYSTEM = "You answer in short sentences."

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    prompts: list[Tokens]
    answers: list[list[int]]
    ties: list[int]  # the first token of each answer for which another was as good

    def some(self) -> "Reference":
        """One of each task."""
        return Reference(*(each[:: len(PLACES)] for each in (self.prompts, self.answers, self.ties)))

    def check(self, said: Iterable[list[int]]) -> None:
        for tokens, answer, tie in zip(said, self.answers, self.ties, strict=True):
            assert tokens[:tie] == answer[:tie]


@pytest.fixture(scope="module")
def reference(models: None, one_thread: None) -> Reference:
    found = load(Source(SOURCE), "cpu", "float32")
    found.model.generation_config.eos_token_id = None
    prompts = [_prompt(found.tokenizer, task.format(place), place) for task in TASKS for place in PLACES]
    said = [generate(found.model, each, ANSWER) for each in prompts]
    ties = [_first_tie(logits) for _, logits in said]
    assert sum(tie < ANSWER for tie in ties) < 5
    return Reference(prompts, [tokens for tokens, _ in said], ties)


def _prompt(tokenizer: Any, text: str, place: str) -> Tokens:
    """As a chat with a system prompt, or as it is."""
    if place != PLACES[0]:
        return tuple(tokenizer.encode(text))
    chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    return tuple(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))


def _first_tie(logits: torch.Tensor) -> int:
    best, second = logits.topk(2).values.unbind(-1)
    return [*(best - second < TIED).tolist(), True].index(True)


async def answer(engine: LocalEngine, tokens: Tokens) -> list[int]:
    job = Job("job", tokens, SamplingParams(max_tokens=ANSWER, temperature=0, ignore_eos=True))
    return [token async for piece in await engine.submit(job) for token in piece.token_ids]


OFF = {"prefix_cache": False, "speculation": False}
SWITCHES: dict[str, dict[str, Any]] = {
    "nothing": OFF,
    "prefix cache": {**OFF, "prefix_cache": True},
    "chunks": {**OFF, "max_num_batched_tokens": 32},
    "preemption": {**OFF, "num_gpu_blocks_override": 256, "max_model_len": 128},
    "speculation": {**OFF, "speculation": True, "max_num_seqs": 4},  # where many answers are written, nobody guesses
    "everything": {"max_num_batched_tokens": 32, "num_gpu_blocks_override": 256, "max_model_len": 128},
}


@pytest.mark.usefixtures("no_headroom")
@pytest.mark.parametrize("switched", SWITCHES)
async def test_together(reference: Reference, switched: str) -> None:
    async with serving(dtype="float32", **SWITCHES[switched]) as engine:
        reference.check(await asyncio.gather(*(answer(engine, each) for each in reference.prompts)))
        stats = engine.stats()
    assert (stats.preemptions > 0) is (switched in ("preemption", "everything"))
    assert (stats.prefix_reused > 0) is (switched in ("prefix cache", "everything"))
    assert (stats.accepted > 0) is (switched in ("speculation", "everything"))


async def test_alone(reference: Reference) -> None:
    async with serving(dtype="float32", **SWITCHES["everything"]) as engine:
        reference.check([await answer(engine, each) for each in reference.prompts])


@pytest.mark.usefixtures("no_headroom")
@needs_compiler
@pytest.mark.parametrize("switched", ["nothing", "everything"])
async def test_with_compiled_steps(reference: Reference, switched: str) -> None:
    options = SWITCHES[switched] | {"max_model_len": 128}  # of one length, so that both need but one compilation
    async with serving(dtype="float32", **options, compile_dir=str(MODELS / "compiled")) as engine:
        reference.check(await asyncio.gather(*(answer(engine, each) for each in reference.prompts)))
        alone = reference.some()
        alone.check([await answer(engine, each) for each in alone.prompts])
