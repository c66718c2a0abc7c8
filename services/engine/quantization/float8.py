"""Weights of 8-bit floats with a scale for the whole, for each output or for blocks of both: expanded when they are
read. They are no multiples of a scale, so that no kernel of blocks multiplies them."""

from functools import partial

from torch import Tensor

from services.engine.quantization.safetensors_files import SafetensorsFiles
from services.engine.quantization.stored_weights import ExpandedWeight

DTYPES = ("F8_E4M3", "F8_E5M2")
WEIGHT = ".weight"

Block = tuple[int, int]  # outputs and inputs that share a scale


def float8_weight(
    files: SafetensorsFiles, path: str, scale: str, block: Block | None, unused: tuple[str, ...] = ()
) -> ExpandedWeight:
    """`scale`, `unused`: names of tensors. `block`: None where a scale is for all inputs."""
    names = (path + WEIGHT, scale, *unused)
    outputs, inputs = files.shape(path + WEIGHT)
    return ExpandedWeight(names, (outputs, inputs), partial(_read, files, path + WEIGHT, scale, block))


def _read(files: SafetensorsFiles, name: str, scale: str, block: Block | None) -> Tensor:
    weight, scales = files[name].float(), files[scale].float()
    if block is not None and scales.dim() == 2:
        outputs, inputs = weight.shape
        scales = scales.repeat_interleave(block[0], 0)[:outputs].repeat_interleave(block[1], 1)[:, :inputs]
    elif scales.numel() > 1:
        scales = scales.reshape(-1, 1)
    return weight * scales
