"""How a model's authors recommend that it is sampled: `generation_config.json`, or the metadata of a GGUF file.

Read as vLLM reads it: `do_sample` is not looked at (files that lack it or have it off still recommend a temperature),
and a value that makes no sense is left out with a log line. Nothing heavy is imported: it is read before a load.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from services.engine.base import SamplingDefaults
from services.engine.quantization import file_header

logger = logging.getLogger(__name__)

FILE = "generation_config.json"
SHOWN = 40  # characters of a value in the log

# The values that requests may have, too.
MAKES_SENSE: Mapping[str, Callable[[float], bool]] = {
    "temperature": lambda value: 0 <= value <= 2,
    "top_p": lambda value: 0 < value <= 1,
    "top_k": lambda value: value >= -1 and value == int(value),
    "min_p": lambda value: 0 <= value <= 1,
    "repetition_penalty": lambda value: 0.01 <= value <= 100,
}


def read_sampling_defaults(source: str) -> SamplingDefaults | None:
    """Of a folder, a hub name or a GGUF file; None: it is not on this machine yet. Blocking."""
    path = Path(source)
    if header := file_header(path):
        return _checked(header.sampling(path), source)
    file = path / FILE if path.is_dir() else _in_hub_cache(source)
    return None if file is None else _checked(_of_file(file), source)


def _of_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        stated = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read, nothing of it is used: %s", path, error)
        return {}
    return stated if isinstance(stated, dict) else {}


def _in_hub_cache(name: str) -> Path | None:
    """Where the hub's file is; one that does not exist where the model has none."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, FILE)
    except ValueError:  # no name of the hub's
        return None
    if found is None:
        return None
    return Path(found) if isinstance(found, str) else Path(name, FILE)


def _checked(stated: Mapping[str, Any], source: str) -> SamplingDefaults:
    given = {name: stated[name] for name in MAKES_SENSE if stated.get(name) is not None}
    sensible = {name: value for name, value in given.items() if _makes_sense(name, value)}
    for name in given.keys() - sensible.keys():
        logger.warning("%s recommends the %s %s: that is left out", source, name, repr(given[name])[:SHOWN])
    top_k = sensible.pop("top_k", None)
    return SamplingDefaults(**sensible, top_k=None if top_k is None else int(top_k))


def _makes_sense(name: str, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and MAKES_SENSE[name](value)
