"""GGUF files split over ranks: their blocks stay blocks, and the answers are those of one process."""

from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import torch
from gguf.constants import GGMLQuantizationType
from torch import Tensor

from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.runner_factory import build_runner
from services.engine.loading.load_options import LoadOptions
from services.engine.loading.loader import Source, load, read_model
from services.engine.parallel.leader import load_parallel
from services.engine.quantization import AS_STORED
from services.engine.quantization.block_layers import BlockEmbedding, BlockHead, BlockLinear
from services.errors import EngineFailed
from tests.test_engine.gguf_files import LENGTH
from tests.test_engine.rank_threads import OPTIONS, ranks
from tests.test_engine.step_log import LoggingExecutor
from tests.test_engine.test_executor import answer_all
from tests.test_engine.test_gguf import LEGACY, MIXED, weight_of, written

Kind = GGMLQuantizationType

pytestmark = [
    pytest.mark.skipif(which("g++") is None, reason="no C++ compiler"),
    pytest.mark.usefixtures("native_kernel", "no_headroom"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

HEADS = 4
TOLERANCE = 2e-2  # of logits: sums in another order, of which some inputs are then rounded to another code


@dataclass(frozen=True)
class Rank:
    """As much of a group as reading needs."""

    rank: int
    size: int = 2


@pytest.mark.parametrize("quantization", [None, AS_STORED], ids=["expanded", "blocks"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
def test_two_ranks_answer_as_one_process(
    architecture: str, quantization: str | None, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = written(tmp_path, architecture, LEGACY, heads=HEADS)
    source = Source(file, quantization=quantization)
    model = load(source, "cpu", "float32", folder).model
    alone = LoggingExecutor(LocalExecutor(build_runner(model, num_slots=3, length=LENGTH, budget=2**30)))
    _, answers = answer_all(alone)

    with ranks(source, monkeypatch, folder, max_num_seqs=3, max_model_len=LENGTH) as executor:
        together = LoggingExecutor(executor)
        assert answer_all(together)[1] == answers

    for one, other in zip(alone.log, together.log, strict=True):
        torch.testing.assert_close(other.logits, one.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kinds", [LEGACY, MIXED], ids=["legacy", "mixed"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_ranks_keep_their_parts_of_the_blocks(
    kinds: tuple[Kind, ...], tied: bool, tmp_path: Path, folder: Path
) -> None:
    file, _ = written(tmp_path, "llama", kinds, tied=tied, heads=HEADS)
    source = Source(file, quantization=AS_STORED)
    whole = weights(load(source, "cpu", "float32", folder).model)
    place, dtype = torch.device("cpu"), torch.float32
    parts = [weights(read_model(source, place, dtype, folder, Rank(rank))) for rank in range(2)]  # type: ignore[arg-type]

    assert parts[0].keys() == parts[1].keys()
    assert len(parts[0]) > len(whole) // 2
    for name, weight in whole.items():
        if name not in parts[0]:  # half of its inputs is none of whole blocks
            continue
        ours, theirs = (part[name] for part in parts)
        is_by_inputs = name.endswith(("o_proj", "down_proj"))
        assert ours.numel() == theirs.numel() == weight.numel() // 2
        if ".packed" in name:  # of several layers, of which each is split
            rows = {tuple(row) for row in weight.tolist()}
            assert {tuple(row) for row in [*ours.tolist(), *theirs.tolist()]} == rows
        else:
            assert torch.equal(torch.cat([ours, theirs], dim=1 if is_by_inputs else 0), weight), name


def weights(model: Any) -> dict[str, Tensor]:
    """All that is in blocks, by the path in one process."""
    found = {
        name.removesuffix(".linear").removesuffix(".embedding"): weight_of(module)
        for name, module in model.named_modules()
        if isinstance(module, BlockLinear | BlockEmbedding)
    }
    assert any(isinstance(module, BlockHead) for module in model.modules())
    return found


def test_a_file_whose_tensors_have_other_names_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = written(tmp_path, "llama", LEGACY)
    monkeypatch.setattr("services.engine.quantization.gguf.is_gguf_arch_supported", lambda name: True)
    with pytest.raises(EngineFailed, match="'tensor_parallel_size': a GGUF file of the architecture llama"):
        load_parallel(Source(file), 2, LoadOptions(**{**OPTIONS, "compile_dir": None, "max_num_seqs": 2}))
