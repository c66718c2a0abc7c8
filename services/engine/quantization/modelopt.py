"""ModelOpt's 8-bit floats (`quant_algo: FP8`): expanded when they are read."""

from collections.abc import Mapping
from typing import Any

from services.engine.loading.unusable import UnusableModel
from services.engine.quantization.float8 import DTYPES, WEIGHT, float8_weight
from services.engine.quantization.safetensors_files import SafetensorsFiles
from services.engine.quantization.stored_weights import StoredWeight

FLOATS = "FP8"
SCALES, INPUTS = ".weight_scale", ".input_scale"


def stored_weights(files: SafetensorsFiles, config: Mapping[str, Any]) -> dict[str, StoredWeight]:
    if (algorithm := config.get("quant_algo")) != FLOATS:
        raise UnusableModel(f"{files.folder} is quantised by ModelOpt to {algorithm}: read is {FLOATS}")
    found: dict[str, StoredWeight] = {}
    for path in (name.removesuffix(SCALES) for name in files if name.endswith(SCALES)):
        if path + WEIGHT in files and files.dtype(path + WEIGHT) in DTYPES:
            unused = (path + INPUTS,) if path + INPUTS in files else ()
            found[path] = float8_weight(files, path, path + SCALES, None, unused)
    return found
