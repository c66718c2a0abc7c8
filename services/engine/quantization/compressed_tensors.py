"""compressed-tensors (llm-compressor): integers of 4 and 8 bits, packed or not, and 8-bit floats.

What a layer's tensors are is seen from their types; the configuration has the sizes of groups and of blocks of floats.
Inputs are rounded as our kernels do, whatever the checkpoint was calibrated for."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from services.engine.loading.unusable import UnusableModel
from services.engine.quantization.bit_packing import unpack_bits
from services.engine.quantization.float8 import DTYPES as FLOAT8
from services.engine.quantization.float8 import float8_weight
from services.engine.quantization.safetensors_files import SafetensorsFiles
from services.engine.quantization.stored_weights import GroupedWeight, Groups, StoredWeight, input_order

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense")
PACKED_BITS = (4, 8)
WORD, BYTE, SIGN = 32, 8, 128
PACKED, SHAPE, WEIGHT = ".weight_packed", ".weight_shape", ".weight"
SCALES, ZEROS, GROUP_OF = ".weight_scale", ".weight_zero_point", ".weight_g_idx"
INPUTS = (".input_scale", ".input_zero_point", ".input_global_scale")  # what inputs would be rounded with


def stored_weights(files: SafetensorsFiles, config: Mapping[str, Any]) -> dict[str, StoredWeight]:
    _refuse_formats(files, config)
    found: dict[str, StoredWeight] = {}
    for path in (name.removesuffix(SCALES) for name in files if name.endswith(SCALES)):
        if path + PACKED in files:
            found[path] = _packed(files, path, config)
        elif path + WEIGHT in files and files.dtype(path + WEIGHT) == "I8":
            found[path] = _integers(files, path, config)
        elif path + WEIGHT in files and files.dtype(path + WEIGHT) in FLOAT8:
            unused = _present(files, path, ZEROS, *INPUTS)
            found[path] = float8_weight(files, path, path + SCALES, _block(config), unused)
    return found


def _packed(files: SafetensorsFiles, path: str, config: Mapping[str, Any]) -> StoredWeight:
    outputs, inputs = (int(size) for size in files[path + SHAPE])
    num_words = files.shape(path + PACKED)[1]
    bits = next((bits for bits in PACKED_BITS if num_words == -(-inputs * bits // WORD)), None)
    if bits is None:
        raise UnusableModel(f"{files.folder} has weights packed to other than {PACKED_BITS} bits ({path})")
    names = _present(files, path, PACKED, SHAPE, SCALES, ZEROS, GROUP_OF, *INPUTS)

    def read() -> Groups:
        words = files[path + PACKED]

        def codes(part: slice) -> Tensor:
            return unpack_bits(words[part], bits)[:, :inputs]

        return Groups(codes, _scales(files, path, outputs), _zeros(files, path, bits, outputs), _group_of(files, path))

    return _grouped(files, path, names, (outputs, inputs), bits, read, config)


def _integers(files: SafetensorsFiles, path: str, config: Mapping[str, Any]) -> StoredWeight:
    outputs, inputs = files.shape(path + WEIGHT)
    names = _present(files, path, WEIGHT, SCALES, ZEROS, GROUP_OF, *INPUTS)

    def read() -> Groups:
        weight = files[path + WEIGHT]

        def codes(part: slice) -> Tensor:
            return weight[part].view(torch.uint8) ^ SIGN

        return Groups(codes, _scales(files, path, outputs), _zeros(files, path, BYTE, outputs), _group_of(files, path))

    return _grouped(files, path, names, (outputs, inputs), BYTE, read, config)


def _grouped(
    files: SafetensorsFiles,
    path: str,
    names: tuple[str, ...],
    shape: tuple[int, int],
    bits: int,
    read: Any,
    config: Mapping[str, Any],
) -> StoredWeight:
    scales, inputs = files.shape(path + SCALES), shape[1]
    num_groups = scales[1] if len(scales) > 1 else 1
    group = WORD * -(-inputs // WORD) if num_groups == 1 else _group_size(config, inputs, num_groups)
    zero = None if path + ZEROS in files else 2 ** (bits - 1)
    return GroupedWeight(names, shape, bits, group, zero, read, input_order(_group_of(files, path)))


def _scales(files: SafetensorsFiles, path: str, outputs: int) -> Tensor:
    """[outputs, groups], also of a scale for all."""
    scales = files[path + SCALES]
    return scales.reshape(-1, 1).expand(outputs, 1) if scales.dim() < 2 else scales.expand(outputs, -1)


def _zeros(files: SafetensorsFiles, path: str, bits: int, outputs: int) -> Tensor | int:
    """As unsigned codes have them."""
    if path + ZEROS not in files:
        return 1 << (bits - 1)
    zeros: Tensor = files[path + ZEROS]
    if zeros.dtype == torch.int32:  # packed along the outputs
        codes: Tensor = unpack_bits(zeros.T, bits)[:, :outputs].T
        return codes
    whole: Tensor = zeros.reshape(-1, 1) if zeros.dim() < 2 else zeros
    unsigned: Tensor = whole.expand(outputs, -1).to(torch.int16) + 2 ** (bits - 1)
    return unsigned


def _group_of(files: SafetensorsFiles, path: str) -> Tensor | None:
    return files.get(path + GROUP_OF)


def _group_size(config: Mapping[str, Any], inputs: int, num_groups: int) -> int:
    sizes = [int(each.get("group_size") or 0) for each in _weights(config)]
    return next((size for size in sizes if size > 0 and -(-inputs // size) == num_groups), -(-inputs // num_groups))


def _block(config: Mapping[str, Any]) -> tuple[int, int] | None:
    shapes = [each["block_structure"] for each in _weights(config) if each.get("block_structure")]
    return (int(shapes[0][0]), int(shapes[0][1])) if shapes else None


def _weights(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for group in config.get("config_groups", {}).values():
        yield group.get("weights") or {}


def _refuse_formats(files: SafetensorsFiles, config: Mapping[str, Any]) -> None:
    groups = config.get("config_groups", {}).values()
    given = {config.get("format"), *(group.get("format") for group in groups)} - {None}
    if others := sorted(given - set(FORMATS)):
        raise UnusableModel(
            f"{files.folder} is packed by compressed-tensors as {', '.join(others)}: read are {', '.join(FORMATS)}"
        )
    if config.get("transform_config") or (config.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise UnusableModel(f"{files.folder} has transforms or sparse weights (compressed-tensors), which are not read")


def _present(files: SafetensorsFiles, path: str, *suffixes: str) -> tuple[str, ...]:
    return tuple(name for suffix in suffixes if (name := path + suffix) in files)
