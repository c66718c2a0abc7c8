"""8-bit floats in blocks, as DeepSeek and Qwen publish them (`quant_method: fp8`): expanded when they are read."""

from collections.abc import Mapping
from typing import Any

from services.engine.quantization.float8 import DTYPES, WEIGHT, float8_weight
from services.engine.quantization.safetensors_files import SafetensorsFiles
from services.engine.quantization.stored_weights import StoredWeight

SCALES, UNUSED = ".weight_scale_inv", (".activation_scale", ".input_scale")


def stored_weights(files: SafetensorsFiles, config: Mapping[str, Any]) -> dict[str, StoredWeight]:
    size = config.get("weight_block_size")
    block = (int(size[0]), int(size[1])) if size else None
    found: dict[str, StoredWeight] = {}
    for path in (name.removesuffix(SCALES) for name in files if name.endswith(SCALES)):
        if path + WEIGHT in files and files.dtype(path + WEIGHT) in DTYPES:
            unused = tuple(name for suffix in UNUSED if (name := path + suffix) in files)
            found[path] = float8_weight(files, path, path + SCALES, block, unused)
    return found
