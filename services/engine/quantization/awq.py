"""AWQ: codes of 4 bits, packed along the outputs, with scales and zeros for groups of inputs (the `gemm` layout)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from services.engine.loading.unusable import UnusableModel
from services.engine.quantization.bit_packing import unpack_bits
from services.engine.quantization.safetensors_files import SafetensorsFiles
from services.engine.quantization.stored_weights import GroupedWeight, Groups, StoredWeight

CODES, ZEROS, SCALES = ".qweight", ".qzeros", ".scales"
BITS, IN_WORD = 4, 8
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # in a word, of outputs that follow each other
LAYOUT = "gemm"


def stored_weights(files: SafetensorsFiles, config: Mapping[str, Any]) -> dict[str, StoredWeight]:
    layout, bits = str(config.get("version") or LAYOUT).lower(), config.get("bits", config.get("w_bit", BITS))
    if layout != LAYOUT or bits != BITS:
        raise UnusableModel(f"{files.folder} has {bits} bits in AWQ's layout {layout}: read are {BITS} in {LAYOUT}")
    paths = [name.removesuffix(CODES) for name in files if name.endswith(CODES)]
    return {path: _weight(files, path) for path in paths}


def _weight(files: SafetensorsFiles, path: str) -> StoredWeight:
    names = tuple(name for suffix in (CODES, ZEROS, SCALES) if (name := path + suffix) in files)
    inputs, num_words = files.shape(path + CODES)
    group = inputs // files.shape(path + SCALES)[0]
    has_zeros = path + ZEROS in files
    zero = None if has_zeros else 2 ** (BITS - 1)
    return GroupedWeight(
        names, (IN_WORD * num_words, inputs), BITS, group, zero, partial(_read, files, path, has_zeros)
    )


def _read(files: SafetensorsFiles, path: str, has_zeros: bool) -> Groups:
    packed = files[path + CODES]

    def codes(part: slice) -> Tensor:
        return _unpacked(packed[:, part.start // IN_WORD : part.stop // IN_WORD]).T.contiguous()

    zeros = _unpacked(files[path + ZEROS]).T if has_zeros else 2 ** (BITS - 1)
    return Groups(codes, files[path + SCALES].T, zeros)


def _unpacked(words: Tensor) -> Tensor:
    codes = unpack_bits(words, BITS)
    return codes.view(*codes.shape[:-1], -1, IN_WORD)[..., torch.tensor(PLACES)].flatten(-2)
