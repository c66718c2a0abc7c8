"""Images go through the engine as text does, and the answers are those of the model's own `generate`."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from services.chat.request.contents import Illustration
from services.engine.base import Image, Job, Picture, PlacedImage, SamplingParams
from services.engine.execution.batched_runner import BatchedRunner
from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.runner_factory import build_runner
from services.engine.loading.loader import Loaded, Source, load
from services.engine.local import LocalEngine
from services.engine.scheduling.ngram_proposer import NgramProposer
from services.engine.scheduling.scheduler import ScheduledSequence
from services.engine.scheduling.sequence import Sequence as Running
from services.engine.scheduling.step import StepRow
from services.engine.vision import vision as vision_module
from services.engine.vision.picture_reader import PictureReader, read_processor
from services.engine.vision.pixels import encoded, pixels
from services.engine.vision.vision import vision_for
from services.engine.vision.vision_check import attach_vision, prepare_vision
from services.errors import EngineFailed, InvalidRequest
from tests.test_engine.step_log import LoggingExecutor, replay
from tests.test_engine.test_compiled import made, needs_compiler
from tests.test_engine.tiny_models import build
from tests.test_engine.tiny_vision import IMAGE, KINDS, write

SEES = [name for name in KINDS if name != "gemma3"]
TOKENS = 8
ONE = f"look at <|vision_start|>{IMAGE}<|vision_end|> and say"
TWO = f"<|vision_start|>{IMAGE}<|vision_end|> or <|vision_start|>{IMAGE}<|vision_end|>?"
PLAIN = "no picture at all, only words"


def picture(seed: int, size: tuple[int, int] = (40, 24)) -> Picture:
    rgb = np.random.default_rng(seed).integers(0, 256, size[0] * size[1] * 3, dtype=np.uint8)
    return encoded(Pillow.frombytes("RGB", size, rgb.tobytes()))


@dataclass(frozen=True, slots=True)
class Ask:
    text: str
    pictures: tuple[Picture, ...] = ()


A, B, TALL = picture(1), picture(2), picture(3, (16, 48))
ASKS = (Ask(ONE, (A,)), Ask(ONE, (B,)), Ask(TWO, (A, TALL)), Ask(TWO, (TALL, B)), Ask(PLAIN))


@dataclass(frozen=True, slots=True)
class Tiny:
    name: str
    loaded: Loaded
    runner: BatchedRunner
    expected: dict[Ask, list[int]]

    @property
    def reader(self) -> PictureReader:
        assert self.loaded.reader
        return self.loaded.reader

    def job(self, ask: Ask, name: str = "job", max_tokens: int = TOKENS) -> Job:
        illustration = Illustration([self.reader.read(each) for each in ask.pictures], self.reader)
        ids = self.loaded.tokenizer.encode(illustration.fill(ask.text), add_special_tokens=False)
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        return Job(name, tuple(ids), params, images=illustration.placed(ids))


def whole(folder: str, model: Any, tokenizer: Any, ask: Ask) -> dict[str, torch.Tensor]:
    """As the model's own processor reads it, all at once."""
    images = [pixels(each) for each in ask.pictures]
    processor = read_processor(folder, model.config, tokenizer)
    given = processor(text=[ask.text], images=images or None, add_special_tokens=False, return_tensors="pt")
    return dict(given)


def generate(model: Any, given: dict[str, torch.Tensor]) -> list[int]:
    out = model.generate(**given, do_sample=False, max_new_tokens=TOKENS)
    tokens: list[int] = out[0, given["input_ids"].shape[1] :].tolist()
    return tokens


def read(folder: str) -> Loaded:
    return load(Source(folder), "cpu", "float32")


def runner_of(loaded: Loaded, budget: int = 2**30) -> BatchedRunner:
    sight = prepare_vision(loaded.model, loaded.reader, required=True)
    runner = build_runner(loaded.model, num_slots=4, length=250, budget=budget)
    attach_vision(sight, runner, required=True)
    assert isinstance(runner, BatchedRunner)
    return runner


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: write(name, tmp_path_factory.mktemp(name)) for name in KINDS}


@pytest.fixture(scope="module", params=SEES)
def tiny(request: pytest.FixtureRequest, folders: dict[str, str]) -> Tiny:
    folder = folders[request.param]
    by_itself, loaded = read(folder), read(folder)
    given = {ask: whole(folder, by_itself.model, by_itself.tokenizer, ask) for ask in ASKS}
    expected = {ask: generate(by_itself.model, given[ask]) for ask in ASKS}
    tiny = Tiny(request.param, loaded, runner_of(loaded), expected)
    assert [list(tiny.job(ask).prompt) for ask in ASKS] == [given[ask]["input_ids"][0].tolist() for ask in ASKS]
    return tiny


@asynccontextmanager
async def serving(tiny: Tiny, runner: BatchedRunner | None = None, **options: Any) -> AsyncGenerator[LocalEngine]:
    engine = LocalEngine(
        tiny.loaded, LocalExecutor(runner or tiny.runner), **{"max_num_batched_tokens": 512, "max_queue": 64} | options
    )
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def said(engine: LocalEngine, job: Job) -> tuple[list[int], int]:
    """Its tokens, and how many of its prompt were found in the cache."""
    pieces = [piece async for piece in await engine.submit(job)]
    return [token for piece in pieces for token in piece.token_ids], pieces[-1].cached_tokens


async def all_said(engine: LocalEngine, tiny: Tiny, asks: Sequence[Ask]) -> list[list[int]]:
    return [tokens for tokens, _ in await asyncio.gather(*(said(engine, tiny.job(ask)) for ask in asks))]


def test_images_make_a_difference(tiny: Tiny) -> None:
    assert tiny.expected[ASKS[0]] != tiny.expected[ASKS[1]]
    assert tiny.expected[ASKS[2]] != tiny.expected[ASKS[3]]


@pytest.mark.parametrize("budget", [512, 5], ids="{} tokens a step".format)
@pytest.mark.parametrize("prefix_cache", [False, True])
async def test_one_after_another(tiny: Tiny, budget: int, prefix_cache: bool) -> None:
    async with serving(tiny, max_num_batched_tokens=budget, prefix_cache=prefix_cache) as engine:
        for ask in (*ASKS, *reversed(ASKS)):
            assert (await said(engine, tiny.job(ask)))[0] == tiny.expected[ask]


@pytest.mark.parametrize("budget", [512, 7], ids="{} tokens a step".format)
@pytest.mark.parametrize("prefix_cache", [False, True])
async def test_all_at_once(tiny: Tiny, budget: int, prefix_cache: bool) -> None:
    """More of them than slots."""
    asks = [*ASKS, *ASKS, ASKS[4]]
    async with serving(tiny, max_num_batched_tokens=budget, prefix_cache=prefix_cache) as engine:
        assert await all_said(engine, tiny, asks) == [tiny.expected[ask] for ask in asks]


async def test_an_image_is_found_again_and_no_other_is_taken_for_it(tiny: Tiny) -> None:
    async with serving(tiny) as engine:
        first, again, other = [await said(engine, tiny.job(ask)) for ask in (ASKS[0], ASKS[0], ASKS[1])]

    job = tiny.job(ASKS[0])
    assert (first[1], again[1]) == (0, len(job.prompt) - 1)
    assert other[1] <= job.images[0].positions[0]
    assert first[0] == again[0] == tiny.expected[ASKS[0]]
    assert other[0] == tiny.expected[ASKS[1]]


@pytest.mark.usefixtures("no_headroom")
async def test_what_was_preempted_is_looked_at_again(
    tiny: Tiny, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision_module, "KEPT_TOKENS", 1)
    loaded = read(folders[tiny.name])
    asks = [ASKS[2], ASKS[3]]
    room = sum(len(tiny.job(ask).prompt) for ask in asks) + TOKENS  # both are let in, and one has to leave
    runner = runner_of(loaded, budget=room * 2 * 2 * (8 + 8) * 4)  # layers x heads x (key + value) x bytes
    assert runner.cache_tokens == room

    async with serving(tiny, runner, prefix_cache=False) as engine:
        assert await all_said(engine, tiny, asks) == [tiny.expected[ask] for ask in asks]
        assert engine.stats().preemptions > 0


async def test_guesses_behind_an_image(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right ones, and behind them what stands for an image."""
    answers = {tiny.job(ask).prompt: tiny.expected[ask] for ask in ASKS}

    def draft(_: NgramProposer, tokens: list[int], most: int) -> tuple[int, ...]:
        prompt = next(prompt for prompt in answers if tuple(tokens[: len(prompt)]) == prompt)
        said = len(tokens) - len(prompt)
        return (*answers[prompt][said : said + 2], tiny.reader.token, tiny.reader.token)[:most]

    monkeypatch.setattr(NgramProposer, "draft", draft)
    async with serving(tiny, prefix_cache=False) as engine:
        for ask in (ASKS[0], ASKS[3], ASKS[4]):
            assert await all_said(engine, tiny, [ask]) == [tiny.expected[ask]]
        assert engine.stats().drafted > engine.stats().accepted > 0


async def test_a_prompt_in_many_steps_is_looked_at_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    vision = tiny.runner.vision
    assert vision is not None
    looked = []
    features = vision.compute_features
    monkeypatch.setattr(vision, "compute_features", lambda image: looked.append(image) or features(image))
    vision.features.clear()
    async with serving(tiny, max_num_batched_tokens=4, prefix_cache=False) as engine:
        await said(engine, tiny.job(ASKS[2]))
    assert len(looked) == 2


async def test_an_image_that_cannot_be_seen_costs_the_others_nothing(tiny: Tiny) -> None:
    job = tiny.job(ASKS[0], "broken")
    image = Image(b"broken", job.images[0].image.text, job.images[0].image.num_tokens, {"pixel_values": np.zeros(3)})
    broken = Job("broken", job.prompt, job.sampling, images=(PlacedImage(image, job.images[0].positions),))
    async with serving(tiny) as engine:
        found = await asyncio.gather(
            *(said(engine, each) for each in (tiny.job(ASKS[2]), broken, tiny.job(ASKS[4]))), return_exceptions=True
        )
        assert isinstance(found[1], EngineFailed)
        assert [found[0], found[2]] == [(tiny.expected[ask], 0) for ask in (ASKS[2], ASKS[4])]


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (3, 3), (500, 3), (257, 131)])
def test_pictures_of_any_shape(tiny: Tiny, size: tuple[int, int]) -> None:
    """Read, or refused with a ValueError, which becomes a 400."""
    try:
        image = tiny.reader.read(picture(0, size))
    except ValueError:
        assert max(size) > 100 * min(size)
    else:
        assert tiny.reader.tokens(image).count(tiny.reader.token) == image.num_tokens > 0


async def test_pickled_steps_with_images_give_the_same_logits_on_another_executor(
    tiny: Tiny, folders: dict[str, str]
) -> None:
    logging = LoggingExecutor(LocalExecutor(tiny.runner))
    engine = LocalEngine(tiny.loaded, logging, max_num_batched_tokens=7, max_queue=64, prefix_cache=False)
    engine.start()
    await all_said(engine, tiny, [ASKS[0], ASKS[3], ASKS[4]])
    await engine.stop()

    replay(logging.log, LocalExecutor(runner_of(read(folders[tiny.name]))))


@needs_compiler
def test_a_compiled_step_speaks_of_images(folders: dict[str, str], folder: Path, native_kernel: None) -> None:
    loaded = read(folders["llava"])
    runner = runner_of(loaded)
    tiny = Tiny("llava", loaded, runner, {})
    rows = [_last(runner, tiny.job(ask)) for ask in (ASKS[4], ASKS[0])]
    eager = [runner.run([row]) for row in rows]
    runner.adopt(made(runner, folder))
    assert runner.is_compiled
    for row, logits in zip(rows, eager, strict=True):
        assert vision_for(runner.vision, [row]) is None
        torch.testing.assert_close(runner.run([row]), logits, atol=1e-4, rtol=1e-4)


def test_steps_of_which_an_image_is_part(tiny: Tiny) -> None:
    """They are never compiled ones: not in its prompt, nor behind it where positions are not those of the slots."""
    sequence = Running(tiny.job(ASKS[0]), 9)
    vision = tiny.runner.vision
    assert vision is not None
    assert vision.concerns([ScheduledSequence(sequence, 0, 1).row()])
    sequence.num_computed = len(sequence.tokens)
    assert vision.concerns([ScheduledSequence(sequence, 0, 1).row()]) is tiny.name.startswith("qwen")
    assert not vision.concerns([ScheduledSequence(Running(tiny.job(ASKS[4]), 9), 0, 1).row()])
    assert (tiny.runner.compilation(Source("nowhere"), Path()) is None) is tiny.name.startswith("qwen")


def _last(runner: BatchedRunner, job: Job) -> StepRow:
    """The step of a first answered token, after a prompt that was read."""
    sequence, slot = Running(job, 9), len(job.images)
    runner.run([ScheduledSequence(sequence, slot, len(job.prompt)).row()])
    sequence.num_computed = len(job.prompt)
    sequence.tokens.append(7)
    return ScheduledSequence(sequence, slot, 1).row()


class TestWhatCannotBeServed:
    def test_a_model_whose_images_look_ahead_takes_text(
        self, folders: dict[str, str], caplog: pytest.LogCaptureFixture
    ) -> None:
        engine = LocalEngine.load(source=folders["gemma3"], max_num_seqs=2)
        assert engine.images is None
        assert "Gemma3ForConditionalGeneration takes text only: UnsupportedVision: its image" in caplog.text

    def test_where_somebody_insists_on_them(self, folders: dict[str, str]) -> None:
        with pytest.raises(EngineFailed, match="Gemma3ForConditionalGeneration: UnsupportedVision: its image"):
            LocalEngine.load(source=folders["gemma3"], max_num_seqs=2, enable_mm=True)

    def test_images_of_a_model_without_eyes(self, tmp_path: Path, folders: dict[str, str]) -> None:
        build("llama").save_pretrained(tmp_path)
        load(Source(folders["llava"])).tokenizer.save_pretrained(tmp_path)
        assert LocalEngine.load(source=str(tmp_path), max_num_seqs=2).images is None
        with pytest.raises(EngineFailed, match="LlamaForCausalLM"):
            LocalEngine.load(source=str(tmp_path), max_num_seqs=2, enable_mm=True)

    def test_a_runner_that_says_something_else(self, folders: dict[str, str]) -> None:
        loaded = read(folders["llava"])
        sight = prepare_vision(loaded.model, loaded.reader, required=True)
        assert sight
        runner = build_runner(loaded.model, num_slots=4, length=250, budget=2**30)
        other = replace(sight, check=replace(sight.check, expected=-sight.check.expected))
        with pytest.raises(EngineFailed, match="its logits differ"):
            attach_vision(other, runner, required=True)
        attach_vision(other, runner, required=False)
        assert runner.vision is None

    async def test_switched_off(self, folders: dict[str, str]) -> None:
        engine = LocalEngine.load(source=folders["llava"], max_num_seqs=2, enable_mm=False)
        assert engine.images is None
        with pytest.raises(InvalidRequest, match="text only"):
            await engine.submit(Job("job", (1, 2), images=(PlacedImage(Image(b"", "", 1, {}), (1,)),)))


class TestKeys:
    def job(self, digest: bytes, positions: tuple[int, ...] = (1, 2, 3)) -> Job:
        return Job("job", (5, 6, 6, 6, 7), images=(PlacedImage(Image(digest, "", 3, {}), positions),))

    def test_a_text_is_its_own(self) -> None:
        sequence = Running(Job("job", (5, 6, 7)), 9)
        sequence.tokens.append(8)
        assert sequence.keys() == [5, 6, 7, 8]
        assert sequence.keys(1, -1) == [6, 7]

    def test_those_of_an_image_are_like_no_token(self) -> None:
        one, same, other = (Running(self.job(digest), 9) for digest in (b"one", b"one", b"other"))
        one.tokens.append(8)
        keys = one.keys()
        assert [key for key in keys if key >= 0] == [5, 7, 8]
        assert len(set(keys[1:4])) == 3
        assert keys[:5] == same.keys()
        assert not set(keys[1:4]) & set(other.keys())
        assert one.keys(2, 6) == keys[2:6]
