"""GGUF files keep their blocks: weights are those that transformers expands, of any type and architecture."""

from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GgufConfig
from transformers.modeling_gguf_pytorch_utils import read_field

from services.engine import quantization
from services.engine.base import Job
from services.engine.cpu import kernels
from services.engine.cpu.compiled_step import CompiledStep
from services.engine.cpu.merged_linear import MergedLinear
from services.engine.execution.batched_runner import BatchedRunner
from services.engine.execution.runner_factory import build_runner
from services.engine.loading.loader import Source, load, until_kernels_are_built
from services.engine.loading.unusable import UnusableModel
from services.engine.local import LocalEngine
from services.engine.quantization import AS_STORED
from services.engine.quantization.block_layers import BlockEmbedding, BlockHead, BlockLinear
from services.engine.quantization.gguf_blocks import FORMATS, unpack
from services.engine.quantization.gguf_parts import BriefReader, kept_parts
from services.engine.quantization.quantized_blocks import PackedBlocks
from tests.test_engine.compilers import step_file
from tests.test_engine.gguf_files import HEADS, HIDDEN, SCALES, VOCABULARY, write_gguf
from tests.test_engine.test_compiled import LENGTH, SLOTS, close, read
from tests.test_engine.tiny_tokenizers import byte_level

Kind = GGMLQuantizationType

pytestmark = [
    pytest.mark.skipif(which("g++") is None, reason="no C++ compiler"),
    pytest.mark.usefixtures("native_kernel"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

LEGACY = (Kind.Q4_1, Kind.Q8_0, Kind.Q4_0, Kind.Q5_0, Kind.Q5_1)
MIXED = (Kind.Q4_K, Kind.Q4_K, Kind.Q6_K, Kind.Q5_K, Kind.Q8_0, Kind.F16, Kind.BF16)
ARCHITECTURES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "qwen3moe"]
TOKENS = torch.arange(1, 13)[None]


def written(
    folder: Path, architecture: str, kinds: tuple[Kind, ...], *, tied: bool = False, heads: int = HEADS
) -> tuple[str, Any]:
    """A file with its parts beside it, and the model that transformers expands it to."""
    file = folder / "tiny.gguf"
    write_gguf(file, architecture, kinds, tied=tied, heads=heads)
    options = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True)}
    expanded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    expanded.config.save_pretrained(folder)
    byte_level().save_pretrained(folder)
    return str(file), expanded


def packed(file: str, dtype: str = "float32") -> Any:
    return load(Source(file, quantization=AS_STORED), "cpu", dtype).model


def weights(model: nn.Module) -> dict[str, Tensor]:
    """All that is in blocks, by the names of parameters, of merged layers one after another."""
    return {
        f"{name}.weight": weight_of(module)
        for name, module in model.named_modules()
        if isinstance(module, BlockLinear | BlockEmbedding)
    }


def weight_of(module: Any) -> Tensor:
    sizes = (module.out_features, module.in_features) if isinstance(module, BlockLinear) else None
    outputs, inputs = sizes or (module.num_embeddings, module.embedding_dim)
    return PackedBlocks(module.codes, module.scales, outputs, inputs, module.format, module.factor).dequantize()


def expected_weight(expanded: Any, name: str) -> Tensor:
    if not name.endswith(".packed.weight"):
        return expanded.state_dict()[name]  # type: ignore[no-any-return]
    first = name.removesuffix(".packed.weight")
    parent, _, leaf = first.rpartition(".")
    names = ("q_proj", "k_proj", "v_proj") if leaf in ("q_proj", "k_proj") else ("gate_proj", "up_proj")
    found = [expanded.get_submodule(f"{parent}.{each}").weight for each in names[names.index(leaf) :]]
    return torch.cat(found)


@pytest.mark.parametrize("kind", FORMATS)
def test_blocks_are_read_as_the_gguf_package_reads_them(kind: Kind) -> None:
    _, num_bytes = GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (5, 3, num_bytes), dtype=np.uint8)
    for at in SCALES.get(kind, (0, 2) if FORMATS[kind].minima else (0,)):
        blocks[..., at : at + 2] = random.random((5, 3, 1)).astype(np.float16).view(np.uint8)
    rows = blocks.reshape(5, -1)
    assert torch.equal(unpack(torch.from_numpy(rows), kind).dequantize(), torch.from_numpy(dequantize(rows, kind)))


@pytest.mark.parametrize("kinds", [LEGACY, MIXED], ids=["legacy", "mixed"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_models_are_those_that_transformers_expands(architecture: str, kinds: tuple[Kind, ...], tmp_path: Path) -> None:
    file, expanded = written(tmp_path, architecture, kinds)
    model = packed(file)
    found = weights(model)
    assert found
    for name, weight in found.items():
        reference = expected_weight(expanded, name)[: len(weight)]
        assert (weight - reference).norm() <= 3e-4 * reference.norm(), name  # scales of K types have 11 bits
    left = {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, expanded.state_dict()[name], rtol=0, atol=0)
    assert len(left) < len(expanded.state_dict())
    logits, reference = model(input_ids=TOKENS).logits, expanded(input_ids=TOKENS).logits
    assert torch.cosine_similarity(logits, reference, dim=-1).min() > 0.999
    for name, weight in load(Source(file), "cpu", "float32").model.state_dict().items():
        assert torch.equal(weight, expanded.state_dict()[name]), name


@torch.inference_mode()
def test_siblings_of_one_type_are_one_product(tmp_path: Path) -> None:
    file, _ = written(tmp_path, "llama", (Kind.Q4_0,))
    attention = packed(file).model.layers[0].self_attn
    assert isinstance(attention.q_proj, MergedLinear)
    assert attention.q_proj.packed.out_features == 2 * HIDDEN
    assert not isinstance(attention.o_proj, MergedLinear)
    assert type(packed(file).model.layers[0].mlp.down_proj) is BlockLinear


@torch.inference_mode()
def test_a_tied_head_shares_the_blocks_of_the_embedding(tmp_path: Path) -> None:
    file, expanded = written(tmp_path, "llama", (Kind.Q8_0,), tied=True)
    model = packed(file)
    assert model.lm_head.codes.data_ptr() == model.model.embed_tokens.codes.data_ptr()
    assert torch.equal(model.model.embed_tokens(TOKENS), expanded.model.embed_tokens(TOKENS))
    assert not [each for each in model.parameters() if each.numel() >= VOCABULARY * HIDDEN]


@torch.inference_mode()
def test_the_head_rounds_its_inputs_to_twice_8_bits(tmp_path: Path) -> None:
    file, expanded = written(tmp_path, "llama", (Kind.Q8_0,))
    head, inputs = packed(file).lm_head, torch.randn(2, 3, HIDDEN, generator=torch.manual_seed(0))
    assert isinstance(head, BlockHead)
    expected = expanded.lm_head(inputs)
    once, twice = ((each - expected).norm() for each in (BlockLinear.forward(head, inputs), head(inputs)))
    assert twice < once / 50
    alone = torch.stack([head(row[None])[0] for row in inputs.flatten(0, 1)])
    assert torch.equal(alone, head(inputs).flatten(0, 1))


@pytest.mark.parametrize("tied", [False, True])
def test_compiled_steps_say_what_eager_ones_say(tied: bool, tmp_path: Path, folder: Path) -> None:
    file, _ = written(tmp_path, "llama", MIXED, tied=tied)
    runner = build_runner(packed(file), num_slots=SLOTS, length=LENGTH, budget=2**30)
    assert isinstance(runner, BatchedRunner)
    step = CompiledStep.load(
        step_file(runner.compilation(Source(file, quantization=AS_STORED), folder), runner.model),
        runner.model,
        runner.cache,
    )
    for lengths in ({0: 1}, {0: 1, 5: 1, 2: 7, 1: 1}):
        scheduled = read(runner, lengths)
        close(step.run(scheduled), runner.run(scheduled))


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3"])  # gemma2: windows and soft-capping
def test_models_in_company_say_what_they_say_alone(architecture: str, tmp_path: Path) -> None:
    file, _ = written(tmp_path, architecture, LEGACY)
    runner = build_runner(packed(file, "bfloat16"), num_slots=SLOTS, length=LENGTH, budget=2**30)
    for lengths in (dict.fromkeys(range(SLOTS), 1), {0: 1, 5: 1, 2: 7}):
        rows = read(runner, lengths)
        together = runner.run(rows)
        for row, logits in zip(rows, together.split([row.num_logits for row in rows]), strict=True):
            assert torch.equal(runner.run([row]), logits)


def test_types_without_a_kernel_are_refused_by_name(tmp_path: Path) -> None:
    file, _ = written(tmp_path, "llama", (Kind.Q8_0,))
    write_gguf(Path(file), "llama", (Kind.TQ2_0,))
    with pytest.raises(UnusableModel, match="TQ2_0"):
        until_kernels_are_built(Source(file, quantization=AS_STORED), "cpu", tmp_path / "nothing built")
    with pytest.raises(UnusableModel, match=r"tensors of the type TQ2_0 \(.*\), for which there is no kernel"):
        packed(file)


@pytest.mark.parametrize("quantized", [True, False])
def test_positions_are_scaled_as_the_file_says(quantized: bool, tmp_path: Path) -> None:
    file, plain = written(tmp_path, "llama", (Kind.Q8_0,))
    factors = np.arange(1, 1 + len(plain.model.rotary_emb.inv_freq), dtype=np.float32)
    write_gguf(Path(file), "llama", (Kind.Q8_0,), more={"rope_freqs.weight": factors})
    checkpoint = quantization.file_format(Path(file))
    assert checkpoint
    model = packed(file) if quantized else checkpoint.model(torch.float32, enable_mm=None)
    expected = plain.model.rotary_emb.inv_freq / torch.from_numpy(factors)
    assert torch.equal(model.model.rotary_emb.inv_freq, expected)


@pytest.mark.parametrize("more", ["rope_factors_long.weight", "rope_freqs.weight"])
def test_positions_that_cannot_be_scaled_so_are_refused(more: str, tmp_path: Path) -> None:
    file, _ = written(tmp_path, "llama", (Kind.Q8_0,))
    write_gguf(Path(file), "llama", (Kind.Q8_0,), more={more: np.ones(3, dtype=np.float32)})
    with pytest.raises(UnusableModel, match=more):
        packed(file)


def test_what_takes_long_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = written(tmp_path, "llama", (Kind.Q8_0,))
    assert kept_parts(Path(file), None) == tmp_path  # they lie beside it
    other = tmp_path / "elsewhere" / "tiny.gguf"
    other.parent.mkdir()
    other.write_bytes(Path(file).read_bytes())
    made: list[Path] = []

    def make(_: Path, folder: Path) -> None:
        made.append(folder)
        folder.mkdir()
        for name in ("config.json", "tokenizer.json"):
            (folder / name).write_text("{}")

    monkeypatch.setattr("services.engine.quantization.gguf_parts.write_parts", make)
    assert kept_parts(other, None) is None
    found = kept_parts(other, tmp_path / "kept")
    assert found == kept_parts(other, tmp_path / "kept")
    assert len(made) == 1


def test_texts_of_lists_are_read_as_empty_ones(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "b", "cde"])
    writer.add_token_types([1, 2, 3])
    writer.add_chat_template("{{ x }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole, brief = GGUFReader(file), BriefReader(file)
    assert whole.fields.keys() == brief.fields.keys()
    for name, field in whole.fields.items():
        texts = name == "tokenizer.ggml.tokens"
        assert read_field(brief, name) == (3 * [""] if texts else read_field(whole, name)), name
        assert brief.fields[name].types == field.types


async def test_an_engine_keeps_blocks_unless_numbers_are_asked_for(tmp_path: Path) -> None:
    file, _ = written(tmp_path, "llama", LEGACY)
    for given, kept in (({}, True), ({"dtype": "bfloat16"}, False), ({"quantization": "none"}, False)):
        engine = LocalEngine.load(source=file, device="cpu", max_num_seqs=2, **given)
        model: Any = engine.executor.runner.model  # type: ignore[attr-defined]
        assert bool(weights(model)) == kept
        engine.start()
        try:
            pieces = [piece async for piece in await engine.submit(Job("job", (5, 6, 7)))]
        finally:
            await engine.stop()
        assert pieces[-1].finish


def test_no_model_waits_for_kernels_that_its_expansion_spares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = written(tmp_path, "llama", LEGACY)
    source, folder = Source(file, quantization=AS_STORED), tmp_path / "compiled"

    def first(device: str = "cpu", folder: Path | None = folder) -> str | None:
        return until_kernels_are_built(source, device, folder).quantization

    assert first() is None
    assert first(folder=None) == AS_STORED  # nothing may be compiled, and nothing is announced
    with monkeypatch.context() as patch:
        patch.setattr("services.engine.loading.loader.free_ram", lambda: 4096)
        assert first() == AS_STORED
    library = kernels.library_path(folder)
    library.parent.mkdir()
    library.touch()
    assert first() == AS_STORED
