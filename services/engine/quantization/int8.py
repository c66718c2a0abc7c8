"""Linear layers with weights of 8 bits, by a kernel of our own (int8.cpp): 53 % of the memory of bfloat16, and faster.

Every 32 weights of an output have a scale of 16 bits. In the products inputs are rounded to 8 bits as well, in the same
blocks. Where the kernel cannot be had (no C++ compiler, no AVX512-VNNI) torch's own product does it: it wants one scale
for each output and leaves inputs as they are. That is as near to the model, but slower than bfloat16 from 8 rows on.
Experts of a mixture go through the kernel of `block_experts`, in blocks of 8 bits.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, pad

from services.engine.cpu import kernels
from services.engine.cpu.merged_linear import replace_linears
from services.engine.execution.model_structure import trial_tokens
from services.engine.quantization import block_layers
from services.engine.quantization.block_experts import ExpertProduct
from services.engine.quantization.rounded_weights import EIGHT, round_experts
from services.errors import EngineFailed

logger = logging.getLogger(__name__)

DEVICES = ("cpu",)
KERNELS = (Path(__file__).with_name("int8.cpp"),)

PANELS, PANEL, BLOCK, FOUR = 3, 16, 32, 4  # as int8.cpp has them
LARGEST = 127
ZERO = 128  # what stands for 0: the processor multiplies unsigned numbers with signed ones
SLICE = 100 * PANELS * PANEL  # outputs that are rounded at once: a float32 copy of a whole layer might not fit
ALIKE = 0.95  # what says less like the model is another one
TRIAL = 8  # tokens


class QuantizedLinear(nn.Module):
    """A linear layer in 8 bits: codes and their scales, of some outputs after the others."""

    def __init__(self, linear: nn.Linear, parts: Iterable[tuple[Tensor, Tensor]], bias: Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight: Tensor
        self.scales: Tensor
        self.bias: Tensor | None
        codes, scales = zip(*parts, strict=True)
        self.register_buffer("weight", torch.cat(codes), persistent=False)
        self.register_buffer("scales", torch.cat(scales), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)


class Int8Linear(QuantizedLinear):
    """Codes and scales lie in one line, as they are read."""

    unrounded = True  # float32 for float32

    def __init__(self, linear: nn.Linear) -> None:
        parts = [_laid_out(*quantise_blocks(part)) for part in torch.split(linear.weight.detach(), SLICE)]
        super().__init__(linear, parts, None if linear.bias is None else linear.bias.float())

    def forward(self, inputs: Tensor) -> Tensor:
        layer = (self.weight, self.scales, self.bias, self.out_features)
        out: Tensor = torch.ops.parley.int8_linear(inputs, *layer)
        return out


class TorchInt8Linear(QuantizedLinear):
    """Needs no compiler."""

    def __init__(self, linear: nn.Linear) -> None:
        weight = linear.weight.detach()
        parts = [quantise_blocks(part, linear.in_features, weight.dtype) for part in torch.split(weight, SLICE)]
        super().__init__(linear, [(codes, scales.flatten()) for codes, scales in parts], linear.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1]).contiguous()
        out: Tensor = torch.ops.aten._weight_int8pack_mm(rows, self.weight, self.scales)
        return (out if self.bias is None else out + self.bias).view(*inputs.shape[:-1], -1)


@torch.inference_mode()
def quantise(model: Any, folder: Path | None) -> None:
    """All linear layers that speak, one after another. `folder`: where our kernel is, or is put."""
    before = _said(model)
    replace_layers(model, folder)
    codes = sum(module.weight.numel() for module in model.modules() if isinstance(module, QuantizedLinear))
    codes += sum(module.num_weights for module in model.modules() if isinstance(module, ExpertProduct))
    try:
        alike = cosine_similarity(_said(model).float(), before.float(), dim=-1).min()
    except Exception as error:  # some reach for a layer's weight themselves
        raise _refused(model, f"its layers are used as something else ({type(error).__name__})") from error
    if not codes:
        raise _refused(model, "it has no layers that could be")
    if not alike > ALIKE:
        raise _refused(model, f"its logits differ (cosine {alike:.3f})")
    others = sum(each.numel() for each in model.parameters())
    logger.info("%.0f %% of the weights are in int8", 100 * codes / (codes + others))


def replace_layers(model: nn.Module, folder: Path | None) -> None:
    """Unchecked. Experts of a mixture stay as they are where no kernels can be compiled."""
    replace_linears(model, Int8Linear if _has_kernel(folder) else TorchInt8Linear)
    if block_layers.is_available():
        round_experts(model, EIGHT, EIGHT)


def _refused(model: Any, reason: str) -> EngineFailed:
    return EngineFailed(f"'quantization': {type(model).__name__} cannot be served in int8: {reason}")


def _said(model: Any) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([trial_tokens(model, TRIAL)]), use_cache=False).logits[0]
    return logits


def is_available() -> bool:
    """Whether the kernels are loaded and have this one: it needs AVX512-VNNI."""
    return hasattr(torch.ops.parley, "int8_linear")


def register_fakes() -> None:
    def empty(inputs: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
        return inputs.new_empty(*inputs.shape[:-1], outputs)

    if is_available():
        torch.library.register_fake("parley::int8_linear", empty, allow_override=True)


def _has_kernel(folder: Path | None) -> bool:
    try:
        if folder is not None and not kernels.is_loaded():
            kernels.ensure_loaded(folder)
    except Exception as error:  # whatever a machine without a compiler may lack
        logger.warning("no kernel can be compiled here: %s", str(error).splitlines()[:1])
    if not is_available():
        logger.warning("int8 is slower than bfloat16 from 8 rows on: it has no kernel here")
    return is_available()


def quantise_blocks(weight: Tensor, block: int = BLOCK, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    """[outputs, inputs] -> numbers from -127 to 127, and what those of each block are to be multiplied with.

    The numbers are made with the scales as they were rounded, so that 8 bits of precision do: bfloat16 brings 1 % more
    error than float16, and never too small or too large a scale.
    """
    outputs, size = weight.shape
    blocks = pad(weight.float(), (0, -size % block)).reshape(outputs, -1, block)
    scales = (blocks.abs().amax(2) / LARGEST).to(dtype)
    codes = blocks / scales.float().clamp(min=torch.finfo(torch.float32).tiny)[:, :, None]
    codes = codes.round_().clamp_(-LARGEST, LARGEST)
    return codes.to(torch.int8).flatten(1)[:, :size], scales


def _laid_out(codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """FOUR inputs of PANELS * PANEL outputs, the next FOUR, …, then the next outputs; each block's scales likewise."""
    outputs, inputs = codes.shape
    whole = pad(codes, (0, -inputs % BLOCK, 0, -outputs % PANEL)).view(torch.uint8) ^ ZERO
    return _in_line(whole.view(len(whole), -1, FOUR)), _in_line(pad(scales, (0, 0, 0, -outputs % PANEL)))


def _in_line(rows: Tensor) -> Tensor:
    return torch.cat([group.transpose(0, 1).flatten() for group in torch.split(rows, PANELS * PANEL)])
