"""Adapters: rows that name one say what the model says with that adapter merged into it, in any company."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from services.engine.base import Job, SamplingParams
from services.engine.cpu import threads
from services.engine.execution.batched_runner import BatchedRunner
from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.padded_runner import PaddedRunner
from services.engine.execution.runner_factory import build_runner
from services.engine.loading.unusable import UnusableModel
from services.engine.local import LocalEngine
from services.engine.lora.adapters import Adapters
from services.engine.paged.runner import PagedRunner, PagingConfig
from services.errors import ModelNotFound
from tests.test_engine import fakes
from tests.test_engine.recorder import Recorder
from tests.test_engine.test_runner import prompt
from tests.test_engine.tiny_adapters import merge, write_adapter
from tests.test_engine.tiny_models import build, build_kind, generate

NEW = 12  # tokens of an answer
PAGED = PagingConfig(4, Recorder())
LAYERS = {  # an architecture's own, in place of those of a Llama
    "gpt2": ("c_attn", "c_fc", "c_proj", "lm_head"),
    "phi3": ("qkv_proj", "gate_up_proj", "down_proj"),
    "bloom": ("query_key_value", "dense"),
}


@dataclass(frozen=True, slots=True)
class Served:
    engine: LocalEngine
    executor: LocalExecutor

    async def answer(self, tokens: tuple[int, ...], adapter: str | None = None, **params: Any) -> list[int]:
        sampling = SamplingParams(max_tokens=NEW, ignore_eos=True, temperature=0, **params)
        pieces = await self.engine.submit(Job("job", tokens, sampling, adapter=adapter))
        return [token async for piece in pieces for token in piece.token_ids]


@asynccontextmanager
async def serving(name: str, folders: dict[str, Path], paging: PagingConfig | None = None) -> AsyncIterator[Served]:
    model = build(name)
    runner = build_runner(model, num_slots=4, length=64, budget=2**30, paging=paging)
    executor = LocalExecutor(runner, Adapters(model))
    engine = LocalEngine(fakes.loaded(model), executor, max_num_batched_tokens=16, max_queue=8)
    engine.start()
    try:
        for adapter, folder in folders.items():
            await engine.load_adapter(adapter, str(folder))
        yield Served(engine, executor)
    finally:
        await engine.stop()


@pytest.mark.parametrize(
    ("name", "paging", "runner"),
    [
        ("llama", None, BatchedRunner),
        ("gpt2", None, BatchedRunner),  # layers with transposed weights, and an adapter of the language head
        ("phi3", None, BatchedRunner),
        ("llama", PAGED, PagedRunner),
        ("bloom", None, PaddedRunner),
    ],
)
async def test_a_batch_of_several_adapters_and_none(
    name: str, paging: PagingConfig | None, runner: type, tmp_path: Path
) -> None:
    layers = {"targets": LAYERS[name]} if name in LAYERS else {}
    small = write_adapter(tmp_path / "small", build(name), seed=1, **layers)
    large = write_adapter(tmp_path / "large", build(name), rank=64, lora_alpha=8, seed=2, **layers)
    merged = {None: build(name), "small": merge(build(name), small), "large": merge(build(name), large)}
    asked = [(prompt(9), "small"), (prompt(20), "large"), (prompt(5), None), (prompt(3), "large")]
    expected = [generate(merged[adapter], tokens, NEW)[0] for tokens, adapter in asked]
    assert generate(merged["small"], prompt(9), NEW)[0] != generate(merged[None], prompt(9), NEW)[0]

    async with serving(name, {"small": small, "large": large}, paging) as served:
        assert isinstance(served.executor.runner, runner)
        assert await asyncio.gather(*(served.answer(tokens, adapter) for tokens, adapter in asked)) == expected


async def test_a_prefix_is_found_under_its_own_adapter_only(tmp_path: Path) -> None:
    one, other = (write_adapter(tmp_path / str(seed), build("llama"), seed=seed) for seed in (1, 2))
    tokens = prompt(40)
    expected = {"one": merge(build("llama"), one), "other": merge(build("llama"), other), None: build("llama")}
    async with serving("llama", {"one": one, "other": other}) as served:
        for adapter in ("one", "other", None):
            for reused in (0, len(tokens) - 1):
                before = served.engine.stats().prefix_reused
                assert await served.answer(tokens, adapter) == generate(expected[adapter], tokens, NEW)[0]
                assert served.engine.stats().prefix_reused - before == reused

        await served.engine.load_adapter("one", str(other))  # in its place: what the old one computed is not found
        assert await served.answer(tokens, "one") == generate(expected["other"], tokens, NEW)[0]


async def test_the_thread_that_loads_an_adapter_lets_its_team_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that sits there makes every step several times as slow."""
    left: list[str] = []
    monkeypatch.setattr(threads, "release_team", lambda: left.append(threading.current_thread().name))
    adding: list[str] = []
    add = LocalExecutor.add_adapter

    def noting(executor: LocalExecutor, id: int, folder: str) -> None:
        add(executor, id, folder)
        assert threading.current_thread().name not in left
        adding.append(threading.current_thread().name)

    monkeypatch.setattr(LocalExecutor, "add_adapter", noting)
    async with serving("llama", {"one": write_adapter(tmp_path / "one", build("llama"))}):
        assert adding
        assert adding[0] in left


async def test_an_adapter_is_unloaded_after_its_last_answer(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "one", build("llama"))
    expected = generate(merge(build("llama"), folder), prompt(9), NEW)[0]
    async with serving("llama", {"one": folder}) as served:
        pieces = await served.engine.submit(
            Job("job", prompt(9), SamplingParams(max_tokens=NEW, ignore_eos=True, temperature=0), adapter="one")
        )
        served.engine.unload_adapter("one")
        with pytest.raises(ModelNotFound):
            await served.answer(prompt(9), "one")
        assert [token async for piece in pieces for token in piece.token_ids] == expected
        await served.engine.settle()
        assert served.executor.adapters
        assert len(served.executor.adapters.bank.weights) == 0


@pytest.mark.parametrize(
    ("config", "ranks", "alphas"),
    [
        ({"target_modules": r".*\.(q|v|o|gate|down)_proj"}, {}, {}),
        ({"target_modules": "all-linear"}, {}, {}),
        ({"use_rslora": True}, {}, {}),
        ({"alpha_pattern": {"q_proj": 16, r"layers\.1\..*\.v_proj": 2}}, {}, {"q_proj": 16, "1.self_attn.v_proj": 2}),
        ({"rank_pattern": {"down_proj": 7}}, {"down_proj": 7}, {}),
        ({"layers_to_transform": [0, 1], "exclude_modules": ["k_proj"], "init_lora_weights": "gaussian"}, {}, {}),
    ],
    ids=str,
)
async def test_what_a_configuration_may_say(
    config: dict[str, Any], ranks: dict[str, int], alphas: dict[str, float], tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "one", build("llama"), ranks=ranks, **config)
    expected = generate(merge(build("llama"), folder, alphas), prompt(9), NEW)[0]
    async with serving("llama", {"one": folder}) as served:
        assert await served.answer(prompt(9), "one") == expected


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "'use_dora': DoRA is not supported"),
        ({"bias": "lora_only"}, "'bias'"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save'"),
        ({"trainable_token_indices": [1]}, "'trainable_token_indices'"),
        ({"init_lora_weights": "pissa_niter_4"}, "'init_lora_weights'"),
        ({"peft_type": "IA3"}, "'peft_type' is IA3"),
        ({"r": 65}, "'r' is 65, ranks from 1 to 64"),
        ({"r": 8}, "not of rank 8, as 'r' says"),
        ({"target_modules": ["q_proj", "k_proj"]}, "no weights of model.layers.0.self_attn.k_proj"),
        ({"target_modules": "("}, "no regular expression"),
        ({"lora_alpha": None}, "cannot be read"),
    ],
    ids=str,
)
def test_what_is_refused_by_its_name(config: dict[str, Any], reason: str, tmp_path: Path) -> None:
    model = build("llama")
    folder = write_adapter(tmp_path / "one", model, **config)
    with pytest.raises(UnusableModel) as refusal:
        Adapters(model).add(0, str(folder))
    assert reason in str(refusal.value)


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    adapters = Adapters(build("llama"))
    embeddings = write_adapter(tmp_path / "embeddings", build("llama"), targets=("embed_tokens",))
    wide = write_adapter(tmp_path / "wide", build_kind("llama", {"head_dim": 16}), targets=("q_proj",))
    (bare := tmp_path / "bare").mkdir()
    for folder, reason in (
        (tmp_path / "nowhere", "there is no folder"),
        (bare, "has no adapter_config.json"),
        (embeddings, "changes model.embed_tokens, which is no linear layer of LlamaForCausalLM"),
        (wide, "the weights of .*q_proj are for 32 inputs and 64 outputs, that of LlamaForCausalLM has 32 and 32"),
    ):
        with pytest.raises(UnusableModel, match=reason):
            adapters.add(0, str(folder))


def test_a_layer_that_the_model_does_not_call(tmp_path: Path) -> None:
    """Some models reach for a layer's weight themselves."""
    model = build("llama")
    folder = write_adapter(tmp_path / "one", model, targets=("o_proj",))
    model.unused = torch.nn.Linear(4, 4)
    unused = write_adapter(tmp_path / "two", model, targets=("o_proj", "unused"))
    adapters = Adapters(model)
    adapters.add(0, str(folder))
    with pytest.raises(UnusableModel, match="changes unused, which LlamaForCausalLM does not call"):
        adapters.add(1, str(unused))
    assert list(adapters.bank.rows) == [0]
