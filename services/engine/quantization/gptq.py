"""GPTQ: codes of 2, 3, 4 or 8 bits, packed along the inputs, with scales and zeros for groups of inputs.

With `desc_act` groups are of inputs that do not follow each other (`g_idx`): their columns are sorted by groups, and so
are the inputs of the product. Zeros are stored less 1, except by `gptq_v2`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from services.engine.loading.unusable import UnusableModel
from services.engine.quantization.bit_packing import BITS, unpack_bits
from services.engine.quantization.safetensors_files import SafetensorsFiles
from services.engine.quantization.stored_weights import GroupedWeight, Groups, StoredWeight, input_order

CODES, ZEROS, SCALES, GROUP_OF = ".qweight", ".qzeros", ".scales", ".g_idx"
WORD = 32  # bits
FORMATS = {"gptq": 1, "gptq_v2": 0}  # what is added to stored zeros


def stored_weights(files: SafetensorsFiles, config: Mapping[str, Any]) -> dict[str, StoredWeight]:
    form = config.get("checkpoint_format") or "gptq"
    if form not in FORMATS or config.get("is_marlin_format"):
        raise UnusableModel(
            f"{files.folder} is packed for a GPU's kernel (GPTQ in the format {form}): repack it as gptq"
        )
    bits = config.get("bits")
    if bits not in BITS or config.get("dynamic"):
        kind = "several numbers of bits" if config.get("dynamic") else f"{bits} bits"
        raise UnusableModel(f"{files.folder} has weights of {kind} in GPTQ: read are those of {BITS}")
    paths = [name.removesuffix(CODES) for name in files if name.endswith(CODES)]
    return {path: _weight(files, path, int(bits), FORMATS[form]) for path in paths}


def _weight(files: SafetensorsFiles, path: str, bits: int, added: int) -> StoredWeight:
    names = tuple(name for suffix in (CODES, ZEROS, SCALES, GROUP_OF) if (name := path + suffix) in files)
    num_words, outputs = files.shape(path + CODES)
    num_groups, inputs = files.shape(path + SCALES)[0], num_words * WORD // bits
    read = partial(_read, files, path, bits, added)
    zeros, group_of = _zeros(files, path, bits, added, outputs), _group_of(files, path)
    zero = int(zeros[0, 0]) if bool((zeros == zeros[0, 0]).all()) else None
    group = WORD * -(-inputs // WORD) if num_groups == 1 else -(-inputs // num_groups)
    return GroupedWeight(names, (outputs, inputs), bits, group, zero, read, input_order(group_of))


def _read(files: SafetensorsFiles, path: str, bits: int, added: int) -> Groups:
    packed = files[path + CODES]

    def codes(part: slice) -> Tensor:
        return unpack_bits(packed[:, part].T, bits)

    zeros = _zeros(files, path, bits, added, packed.shape[1])
    return Groups(codes, files[path + SCALES].T, zeros, _group_of(files, path))


def _zeros(files: SafetensorsFiles, path: str, bits: int, added: int, outputs: int) -> Tensor:
    """[outputs, groups]"""
    return unpack_bits(files[path + ZEROS], bits).T[:outputs].to(torch.int16) + added


def _group_of(files: SafetensorsFiles, path: str) -> Tensor | None:
    return files.get(path + GROUP_OF)
