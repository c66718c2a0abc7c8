"""What a model on this disk takes: bytes of weights, their quantisation, memory for each token. Nothing is loaded, and
torch is not imported."""

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.engine.quantization import gguf_header

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
GGUF_TYPE = re.compile(r"(?<![a-z0-9])(i?q\d\w*|bf16|f16|f32|mxfp4\w*)(?=\.gguf$|-\d{5}-of)", re.IGNORECASE)
GGUF_PART = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")  # large ones come in several files
CACHE_BYTES = 2  # of a number in the KV cache
FLOATS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True, slots=True)
class Footprint:
    weights: int  # bytes
    quantization: str  # as the files name it; "?" if they do not
    token: int | None = None  # bytes of the KV cache for a token; None: not known, or the model keeps none
    max_length: int | None = None  # tokens, of the model's own limit

    def context(self, memory: int, share: float) -> int | None:
        """Tokens whose cache fits into a share of what the weights leave of `memory` (bytes); 0: they do not fit.

        None: they fit, and how many tokens is not known.
        """
        left = memory - self.weights
        if left <= 0:
            return 0
        if not self.token:
            return self.max_length
        fits = int(share * left) // self.token
        return min(fits, self.max_length) if self.max_length else fits


def of(path: Path) -> Footprint | None:
    """Of a model's folder or GGUF file; None if there are no weights."""
    if path.is_file():
        return Footprint(_gguf_size(path), gguf_type(path.name), *_gguf_shape(path))
    config = _read(path / "config.json")
    files = [file for pattern in WEIGHTS for file in path.glob(pattern)]
    kinds = {file.suffix for file in files}
    if not kinds:
        return None
    if ".safetensors" in kinds:  # other files repeat the same weights
        files = [file for file in files if file.suffix == ".safetensors"]
    weights = sum(file.stat().st_size for file in files)
    if not config and kinds == {".gguf"}:
        return Footprint(weights, gguf_type(files[0].name), *_gguf_shape(min(files)))
    text = config.get("text_config") or config
    quantization = gguf_type(files[0].name) if kinds == {".gguf"} else _quantization(config)
    return Footprint(weights, quantization, _token_bytes(text), text.get("max_position_embeddings"))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _quantization(config: dict[str, Any]) -> str:
    method = (config.get("quantization_config") or {}).get("quant_method")
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "?")
    return str(method) if method else FLOATS.get(dtype, dtype)


def _token_bytes(config: dict[str, Any]) -> int | None:
    heads = config.get("num_attention_heads")
    layers = config.get("num_hidden_layers")
    if not (isinstance(heads, int) and isinstance(layers, int) and isinstance(config.get("hidden_size"), int)):
        return None
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return int(2 * CACHE_BYTES * layers * (config.get("num_key_value_heads") or heads) * head_dim)


def gguf_type(name: str) -> str:
    found = GGUF_TYPE.search(name)
    return found[1].upper() if found else "?"


def _gguf_size(path: Path) -> int:
    """With the other parts of a model that comes in several files."""
    name = GGUF_PART.sub("", path.name)
    return sum(each.stat().st_size for each in path.parent.iterdir() if GGUF_PART.sub("", each.name) == name)


def _gguf_shape(path: Path) -> tuple[int | None, int | None]:
    """Bytes of the KV cache for a token, and the model's own limit in tokens."""
    try:
        facts = gguf_header.read_file(path).facts
    except (OSError, struct.error, ValueError, LookupError):
        return None, None
    names = {
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "hidden_size": "embedding_length",
        "head_dim": "attention.key_length",
        "max_position_embeddings": "context_length",
    }
    architecture = facts.get("general.architecture")
    stated = {name: facts.get(f"{architecture}.{key}") for name, key in names.items()}
    found = {name: value for name, value in stated.items() if isinstance(value, int)}
    return _token_bytes(found), found.get("max_position_embeddings")
