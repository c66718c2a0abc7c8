"""Small checkpoints of quantised weights, as the tools of each method lay them out, and the weights they stand for."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.test_engine.tiny_models import build_kind
from tests.test_engine.tiny_tokenizers import byte_level

HIDDEN, INNER = 256, 384
SHAPE = {"hidden_size": HIDDEN, "intermediate_size": INNER, "initializer_range": 0.1, "vocab_size": 330}
WORD = 32
PROJECTION = re.compile(r"(_proj|\.w[123])\.weight$")
AWQ_PLACES = [0, 2, 4, 6, 1, 3, 5, 7]  # outputs, from a word's lowest bits on

Tensors = dict[str, Tensor]  # by their names


@dataclass(frozen=True, slots=True)
class Rounded:
    """`scales * (codes - zeros)`, each for the inputs of a group."""

    codes: Tensor  # [outputs, inputs]
    scales: Tensor  # [outputs, groups], as they are stored
    zeros: Tensor
    group_of: Tensor  # of each input

    @property
    def weight(self) -> Tensor:
        zeros, scales = (each.float()[:, self.group_of] for each in (self.zeros, self.scales))
        return (self.codes - zeros) * scales


def rounded(
    weight: Tensor, bits: int, group: int, *, symmetric: bool, act_order: bool = False, dtype: torch.dtype
) -> Rounded:
    """`group`: -1 for all inputs."""
    inputs = weight.shape[1]
    size = inputs if group == -1 else group
    group_of = torch.arange(inputs) // size
    if act_order:
        group_of = group_of[torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs))]
    columns = [weight[:, group_of == each] for each in range(-(-inputs // size))]
    low = torch.stack([each.amin(1) for each in columns], 1).clamp(max=0)
    high = torch.stack([each.amax(1) for each in columns], 1).clamp(min=0)
    if symmetric:
        scales = (torch.maximum(high, -low) / (2 ** (bits - 1) - 1)).to(dtype)
        zeros = torch.full_like(scales, 2 ** (bits - 1)).int()
    else:
        scales = ((high - low) / (2**bits - 1)).to(dtype)
        zeros = (-low / scales.float()).round().clamp(1, 2**bits - 1).int()
    codes = (weight / scales.float()[:, group_of] + zeros[:, group_of]).round().clamp(0, 2**bits - 1).int()
    return Rounded(codes, scales, zeros, group_of)


def packed(numbers: Tensor, bits: int) -> Tensor:
    """[rows, numbers] -> int32 [rows, words], number after number from the lowest bit on."""
    rows = [sum(int(number) << (bits * at) for at, number in enumerate(row)) for row in numbers.tolist()]
    num_words = -(-numbers.shape[1] * bits // WORD)
    words = [[(row >> (WORD * at)) & 0xFFFFFFFF for at in range(num_words)] for row in rows]
    return torch.tensor(words, dtype=torch.int64).to(torch.int32)


def gptq(
    bits: int = 4, group: int = 128, *, symmetric: bool = True, act_order: bool = False, version: int = 1
) -> "Method":
    def layer(path: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        made = rounded(weight, bits, group, symmetric=symmetric, act_order=act_order, dtype=torch.float16)
        return {
            f"{path}.qweight": packed(made.codes, bits).T.contiguous(),
            f"{path}.qzeros": packed(made.zeros.T - int(version == 1), bits),
            f"{path}.scales": made.scales.T.contiguous(),
            f"{path}.g_idx": made.group_of.int(),
        }, made.weight

    form = "gptq" if version == 1 else "gptq_v2"
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order, "sym": symmetric}
    return Method(config | {"checkpoint_format": form}, layer)


def awq(group: int = 128) -> "Method":
    def interleaved(numbers: Tensor) -> Tensor:
        return packed(numbers.unflatten(1, (-1, 8))[..., AWQ_PLACES].flatten(1), 4)

    def layer(path: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        made = rounded(weight, 4, group, symmetric=False, dtype=torch.float16)
        return {
            f"{path}.qweight": interleaved(made.codes.T),
            f"{path}.qzeros": interleaved(made.zeros.T),
            f"{path}.scales": made.scales.T.contiguous(),
        }, made.weight

    return Method({"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}, layer)


def compressed_integers(
    bits: int, group: int, *, symmetric: bool = True, act_order: bool = False, is_packed: bool = True
) -> "Method":
    def layer(path: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        made = rounded(weight, bits, group, symmetric=symmetric, act_order=act_order, dtype=torch.bfloat16)
        tensors = {f"{path}.weight_scale": made.scales}
        if is_packed:
            tensors |= {
                f"{path}.weight_packed": packed(made.codes, bits),
                f"{path}.weight_shape": torch.tensor(weight.shape),
            }
        else:
            tensors[f"{path}.weight"] = (made.codes - 2 ** (bits - 1)).to(torch.int8)
        if not symmetric:
            signed = (made.zeros - 2 ** (bits - 1)).to(torch.int8)
            tensors[f"{path}.weight_zero_point"] = packed(made.zeros.T, bits).T.contiguous() if is_packed else signed
        if act_order:
            tensors[f"{path}.weight_g_idx"] = made.group_of.int()
        return tensors, made.weight

    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": None if group == -1 else group}
    return Method(compressed("pack-quantized" if is_packed else "int-quantized", weights), layer)


def compressed(form: str, weights: dict[str, Any]) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, "ignore": ["lm_head"]}


def float8(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers, scales of blocks, and the weight that they stand for."""
    outputs, inputs = weight.shape
    rows, columns = torch.arange(outputs) // block[0], torch.arange(inputs) // block[1]
    scales = torch.zeros(int(rows[-1]) + 1, int(columns[-1]) + 1)
    for row in range(len(scales)):
        for column in range(scales.shape[1]):
            scales[row, column] = weight[rows == row][:, columns == column].abs().max() / 448
    spread = scales[rows][:, columns]
    numbers = (weight / spread).to(torch.float8_e4m3fn)
    return numbers, scales, numbers.float() * spread


def compressed_float8(strategy: str) -> "Method":
    def layer(path: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        block = {"tensor": tuple(weight.shape), "channel": (1, weight.shape[1]), "block": (100, 100)}[strategy]
        numbers, scales, expected = float8(weight, block)  # type: ignore[arg-type]
        stored = scales.flatten() if strategy == "tensor" else scales
        return {
            f"{path}.weight": numbers,
            f"{path}.weight_scale": stored,
            f"{path}.input_scale": torch.ones(1),
        }, expected

    block = [100, 100] if strategy == "block" else None
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "block_structure": block}
    return Method(compressed("float-quantized", weights), layer)


def block_float8(size: int = 128) -> "Method":
    def layer(path: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        numbers, scales, expected = float8(weight, (size, size))
        return {f"{path}.weight": numbers, f"{path}.weight_scale_inv": scales}, expected

    config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [size, size]}
    return Method(config, layer)


def mxfp4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[..., inputs] -> codes of two numbers [..., groups, 16], exponents [..., groups], and what they stand for."""
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    groups = weight.view(*weight.shape[:-1], -1, 32)
    exponents = (groups.abs().amax(-1) / 6).log2().ceil()
    scaled = groups / exponents.exp2()[..., None]
    nearest = (scaled.abs()[..., None] - values).abs().argmin(-1)
    codes = (nearest + 8 * (scaled < 0)).to(torch.uint8)
    expected = values[nearest] * scaled.sign() * exponents.exp2()[..., None]
    return codes[..., ::2] | codes[..., 1::2] << 4, (exponents + 127).to(torch.uint8), expected.view(weight.shape)


def save_mxfp4(folder: Path) -> Any:
    """A gpt-oss with experts as it is published with; returns the model with the weights that they stand for."""
    options = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 64, "intermediate_size": HIDDEN}
    plain = build_kind("gpt_oss", SHAPE | options)
    plain.save_pretrained(folder)
    byte_level().save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        blocks, scales, expected = mxfp4(tensors.pop(name).mT.contiguous())
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain.get_parameter(name).data = expected.mT.contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    set_quantization(folder, {"quant_method": "mxfp4"})
    return plain


def modelopt_float8() -> "Method":
    def layer(path: str, weight: Tensor) -> tuple[Tensors, Tensor]:
        numbers, scales, expected = float8(weight, (weight.shape[0], weight.shape[1]))
        return {
            f"{path}.weight": numbers,
            f"{path}.weight_scale": scales.squeeze(),
            f"{path}.input_scale": torch.tensor(1.0),
        }, expected

    return Method({"quant_method": "modelopt", "quant_algo": "FP8", "producer": {"name": "modelopt"}}, layer)


@dataclass(frozen=True, slots=True)
class Method:
    config: dict[str, Any]
    layer: Callable[[str, Tensor], tuple[Tensors, Tensor]]

    def save(self, folder: Path, kind: str = "llama", **options: Any) -> Any:
        """A checkpoint whose linear layers but the head are quantised; returns the model with the weights that they
        stand for."""
        build_kind(kind, SHAPE | options).save_pretrained(folder)
        byte_level().save_pretrained(folder)
        file = folder / "model.safetensors"
        tensors, made = load_file(file), Tensors()
        for name in filter(PROJECTION.search, list(tensors)):
            layer, tensors[name] = self.layer(name.removesuffix(".weight"), tensors[name].float())
            made |= layer
        save_file(tensors, file, metadata={"format": "pt"})
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        others = {name: tensor for name, tensor in tensors.items() if not PROJECTION.search(name)}
        save_file(others | made, file, metadata={"format": "pt"})
        set_quantization(folder, self.config)
        return plain


def set_quantization(folder: Path, config: dict[str, Any]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": config}))
