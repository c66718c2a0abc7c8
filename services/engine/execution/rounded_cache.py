"""Keys and values of 8 bits (`kv_cache_dtype`): what they need, and which models they are for.

Each row, a key or a value of one token and head, has a scale of its own behind its numbers, so that all that happens to
slots happens to it as to any other row.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from services.engine.cpu import kernels
from services.engine.cpu.packed_attention import is_known
from services.engine.execution.kv_cache import LayerShape
from services.errors import EngineFailed

logger = logging.getLogger(__name__)

SETTING = "'kv_cache_dtype'"
AUTO, INT8 = "auto", "int8"
DTYPES = (AUTO, INT8)


def require_kernel(kv_cache_dtype: str, device: str, folder: Path | None) -> None:
    """Raises EngineFailed where keys and values cannot be kept so. `device`: torch's type; `folder`: where kernels are,
    or are put; None: nothing may be compiled."""
    if kv_cache_dtype not in DTYPES:
        raise EngineFailed(f"{SETTING}: '{kv_cache_dtype}' is neither of {', '.join(DTYPES)}")
    if kv_cache_dtype == AUTO:
        return
    if device != "cpu":
        raise EngineFailed(f"{SETTING}: int8 is for the CPU, this model is on {device}; set auto")
    if folder is not None:
        kernels.try_to_load(folder)
    if not kernels.is_loaded():
        raise EngineFailed(
            f"{SETTING}: int8 needs the attention kernel, which cannot be compiled here: install a C++ compiler and"
            " leave 'compile' on, or set auto"
        )


def in_8_bits(shapes: Mapping[int, LayerShape]) -> dict[int, LayerShape]:
    """Raises EngineFailed for heads that the kernel has no path for."""
    rounded = {index: shape.in_8_bits() for index, shape in shapes.items()}
    for shape in rounded.values():
        if not is_known(shape):
            raise EngineFailed(
                f"{SETTING}: int8 is not for heads of {shape.key_dim} and {shape.value_dim} numbers; set auto"
            )
    return rounded
