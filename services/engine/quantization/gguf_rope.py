"""Factors of rotary positions that a GGUF file has as a tensor: Llama 3.1's frequencies are divided by them.

`transformers` leaves them unread, and long texts would go wrong without a word."""

from typing import Any

import numpy as np
import torch

from services.engine.loading.unusable import UnusableModel
from services.engine.quantization.gguf_file import GgufFile

FACTORS = "rope_freqs.weight"  # [head dimension / 2]
LONG_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight")  # LongRoPE's, of Phi-3 and others
READ_HERE = (FACTORS, *LONG_FACTORS)


def refuse_long(file: GgufFile) -> None:
    if any(place.name in LONG_FACTORS for place in file.head.tensors):
        raise UnusableModel(
            f"{file.path} scales its positions by LongRoPE ({LONG_FACTORS[0]}), which is not read from GGUF files:"
            " name the checkpoint in safetensors"
        )


def apply_factors(model: Any, file: GgufFile) -> None:
    place = next((each for each in file.head.tensors if each.name == FACTORS), None)
    if place is None:
        return
    factors = torch.from_numpy(np.ascontiguousarray(file.values(place))).flatten()
    rotary = [each for each in model.modules() if isinstance(getattr(each, "inv_freq", None), torch.Tensor)]
    if not rotary or any(each.inv_freq.shape != factors.shape for each in rotary):
        raise UnusableModel(
            f"{file.path} scales its positions ({FACTORS}) in a way that {type(model).__name__} has not"
        )
    for module in rotary:
        if getattr(module, "rope_type", "default") != "default":
            continue  # its configuration has the scaling already
        for name in ("inv_freq", "original_inv_freq"):
            if isinstance(given := getattr(module, name, None), torch.Tensor):
                setattr(module, name, given / factors.to(given))
