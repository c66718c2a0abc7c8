"""Tensor parallel: what several ranks compute together is what one process computes."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from services.engine.execution.executor import ExecutorLost
from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.runner_factory import build_runner
from services.engine.loading.load_options import LoadOptions
from services.engine.loading.loader import Source
from services.engine.parallel import rank
from services.engine.parallel.group import GroupAborted, RankGroup
from services.engine.parallel.leader import load_parallel
from services.engine.parallel.process_group import TorchPlan
from services.engine.parallel.shared_memory import CAPACITY, shared_memory
from services.engine.parallel.split import check_split
from services.engine.scheduling.ngram_proposer import NgramProposer
from services.engine.scheduling.step import Step, StepRow
from services.errors import EngineFailed
from tests.test_engine.compilers import needs_compiler
from tests.test_engine.rank_threads import OPTIONS, ranks, save
from tests.test_engine.step_log import LoggingExecutor
from tests.test_engine.test_executor import LENGTH, answer_all
from tests.test_engine.tiny_models import EXPERTS, GEMMA, GPT2, INDEXED, MIXED, SHAPE, build_kind

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 9.0}),
}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "head_dim": 8}),
    "gemma3": ("gemma3_text", {**GEMMA, "layer_types": MIXED}),
    "phi3": ("phi3", {}),  # whole queries, keys and values on each rank
    "deepseek_v3": ("deepseek_v3", {k: v for k, v in INDEXED.items() if not k.startswith("index")}),
}
STEP = Step([], [StepRow("row", 0, 0, 3, 1, (1, 2, 3))])
TOLERANCE = 1e-3  # of logits: sums in another order


@needs_compiler
@pytest.mark.usefixtures("no_headroom")
@pytest.mark.parametrize(
    "kind",
    [*MODELS.values(), *(pytest.param(each, marks=pytest.mark.extended) for each in MORE.values())],
    ids=[*MODELS, *MORE],
)
def test_two_ranks_answer_as_one_process(
    kind: tuple[str, dict[str, Any]], tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In company, with prefixes, prompts in chunks, preemptions and draft tokens."""
    model = sharpened(build_kind(*kind))
    source = save(model, tmp_path)
    local = LocalExecutor(build_runner(model, num_slots=3, length=LENGTH, budget=2**30))
    _, texts = answer_all(local)
    monkeypatch.setattr(NgramProposer, "draft", half_right(texts))
    alone = LoggingExecutor(local)
    scheduler, answers = answer_all(alone)

    with ranks(source, monkeypatch, folder, max_num_seqs=3, max_model_len=LENGTH) as executor:
        together = LoggingExecutor(executor)
        assert answer_all(together)[1] == answers

    for one, other in zip(alone.log, together.log, strict=True):
        assert one.pickled == other.pickled
        torch.testing.assert_close(other.logits, one.logits, rtol=0, atol=TOLERANCE)
    assert scheduler.num_preemptions > 0
    assert scheduler.num_reused > 0
    assert scheduler.num_accepted > 0


def sharpened(model: Any) -> Any:
    """With biases that are not zero and norms that are not one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def half_right(texts: list[list[int]]) -> Any:
    """Drafts two right tokens and a wrong one."""

    def draft(_: NgramProposer, tokens: list[int], most: int) -> tuple[int, ...]:
        for text in texts:
            if text[: len(tokens)] == tokens and len(text) >= len(tokens) + 2:
                return (*text[len(tokens) : len(tokens) + 2], 0)[:most]
        return ()

    return draft


# --- groups ---


def exchanged(groups: list[RankGroup], exchange: Callable[[RankGroup], Any]) -> list[Any]:
    """What each rank gets, each on a thread of its own."""
    with ThreadPoolExecutor(len(groups)) as pool:
        return list(pool.map(exchange, groups))


@pytest.fixture(params=["shared memory", pytest.param("gloo", marks=pytest.mark.extended)])
def groups(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> list[RankGroup]:
    size = 3
    plan = (
        shared_memory(folder, size) if request.param == "shared memory" else TorchPlan(str(tmp_path / "store"), "cpu")
    )
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: plan.join(rank, size), range(size)))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(1, 5), (3, 7, 11), (5, CAPACITY // 7)], ids=str)
def test_sums_and_gathers(groups: list[RankGroup], dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    parts = [(8 * torch.randn(shape, generator=torch.Generator().manual_seed(rank))).to(dtype) for rank in range(3)]

    sums = exchanged(groups, lambda group: group.sum(parts[group.rank].clone()))
    gathered = exchanged(groups, lambda group: group.gather(parts[group.rank]))

    expected = (parts[0].double() + parts[1] + parts[2]).to(dtype)
    torch.testing.assert_close(sums[0], expected, atol=0.1 if dtype == torch.bfloat16 else 1e-5, rtol=0.01)
    assert all(torch.equal(each, sums[0]) for each in sums)  # the same bits
    assert all(torch.equal(each, torch.cat(parts, dim=-1)) for each in gathered)


@needs_compiler
def test_ranks_that_compute_different_things_fail(folder: Path) -> None:
    plan = shared_memory(folder, 2)
    groups: list[RankGroup] = [plan.join(rank, 2) for rank in range(2)]

    def add(group: RankGroup) -> None:
        with pytest.raises(GroupAborted):
            group.sum(torch.ones(3 + group.rank))

    exchanged(groups, add)


@needs_compiler
def test_an_abort_ends_what_is_waited_for(folder: Path) -> None:
    plan = shared_memory(folder, 2)
    one, other = plan.join(0, 2), plan.join(1, 2)

    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(one.sum, torch.ones(3))
        with pytest.raises(FutureTimeout):
            waiting.result(0.05)
        other.abort()
        with pytest.raises(GroupAborted):
            waiting.result(5)


# --- what is refused ---


@pytest.mark.parametrize(
    ("kind", "options", "size", "reason"),
    [
        ("llama", {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72, "intermediate_size": 96}, 2,
         "9 attention heads, .* possible sizes: 3$"),
        ("llama", {"num_attention_heads": 8, "num_key_value_heads": 4}, 3, "possible sizes: 2, 4$"),
        ("llama", {"num_key_value_heads": 1}, 2, "1 key/value heads, .* it cannot be split"),
        ("mixtral", {"intermediate_size": 62, "num_key_value_heads": 4}, 4, "possible sizes: 2$"),
        ("gpt2", GPT2, 2, "no plan to split GPT2LMHeadModel"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_divide(kind: str, options: dict[str, Any], size: int, reason: str) -> None:
    config = AutoConfig.for_model(kind, **{**SHAPE, **options})
    with pytest.raises(EngineFailed, match=reason):
        check_split(AutoModelForCausalLM, config, size)


def test_what_is_not_split(tmp_path: Path) -> None:
    def refuse(source: Source, reason: str, **options: Any) -> None:
        with pytest.raises(EngineFailed, match=reason):
            load_parallel(source, 2, LoadOptions(**{**OPTIONS, "compile_dir": None, "max_num_seqs": 2, **options}))

    source = save(build_kind("llama", {}), tmp_path)
    refuse(replace(source, enable_mm=True), "images")
    refuse(source, "'cpu' or 'cuda'", device="meta")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    refuse(source, "quantised")


# --- failures ---


@needs_compiler
def test_a_follower_that_is_gone_ends_the_executor(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(build_kind("llama", {}), tmp_path)
    with ranks(source, monkeypatch, folder, max_num_seqs=2) as executor:
        executor.execute(STEP)
        assert not executor.is_lost
        monkeypatch.setattr(LocalExecutor, "execute", failing_on_a_follower(LocalExecutor.execute))

        with pytest.raises(ExecutorLost):
            executor.execute(STEP)

        assert executor.is_lost
        with pytest.raises(ExecutorLost):
            executor.execute(STEP)


def failing_on_a_follower(execute: Any) -> Any:
    def failing(self: LocalExecutor, step: Step) -> Any:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("as a full memory would be")
        return execute(self, step)

    return failing


@needs_compiler
def test_a_follower_that_cannot_load_is_reported(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(build_kind("llama", {}), tmp_path)
    read = rank.read_model

    def reading(*given: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("no file")
        return read(*given)

    monkeypatch.setattr(rank, "read_model", reading)
    with (
        pytest.raises(EngineFailed, match="rank 1: ValueError: no file"),
        ranks(source, monkeypatch, folder, max_num_seqs=2),
    ):
        pass
