"""Encoders of embedding models and rerankers with linear layers of 8 bits, by the kernel of chat models' (int8.py)."""

from pathlib import Path
from typing import Any

import torch

from services.engine.embedding.compiled_encoder import similarity, token_vectors
from services.engine.quantization import UNQUANTIZED, int8, method
from services.errors import EngineFailed

INT8 = "int8"


def check_method(quantization: str | None, device: torch.device) -> str | None:
    """None: layers stay as they are. Raises EngineFailed for a method that is not for encoders or for the device."""
    if quantization in (None, UNQUANTIZED):
        return None
    if quantization != INT8:
        raise EngineFailed(f"'quantization': embedding models and rerankers are served in {INT8}, not {quantization}")
    method(quantization, device.type)
    return quantization


@torch.inference_mode()
def quantise_encoder(model: Any, folder: Path | None) -> None:
    """`folder`: where the kernels are, or are put. Raises EngineFailed for a model that makes other vectors then."""
    expected = token_vectors(model)
    int8.replace_layers(model, folder)
    try:
        alike = similarity(token_vectors(model), expected)
    except Exception as error:  # some reach for a layer's weight themselves
        raise _refused(model, f"its layers are used as something else ({type(error).__name__})") from error
    if not alike > int8.ALIKE:
        raise _refused(model, f"its vectors differ (cosine {alike:.3f})")


def _refused(model: Any, reason: str) -> EngineFailed:
    return EngineFailed(f"'quantization': {type(model).__name__} cannot be served in {INT8}: {reason}")
