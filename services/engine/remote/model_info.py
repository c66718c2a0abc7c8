"""A model's tokenizer and limits, from its folder, hub name or GGUF file; no weights are read.

torch is not imported, except for tokenizers without a `tokenizer.json` and for GGUF files, which transformers reads by
way of it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from services.engine.base import Tokenizer
from services.engine.quantization import file_format, file_header

UNLIMITED = 10**9  # tokenizers without a limit of their own say 10**30


@dataclass(frozen=True, slots=True)
class ModelInfo:
    tokenizer: Tokenizer
    eos: frozenset[int]
    max_length: int  # tokens of prompt and answer
    vocabulary: int  # tokens that the logits speak of


def read(source: str) -> ModelInfo:
    """Blocking: a hub model's files may have to be fetched."""
    path = Path(source)
    if file_header(path):
        return _of_file(path)
    tokenizer = _tokenizer(source)
    config = read_json(source, "config.json")
    generation = read_json(source, "generation_config.json")
    text = config.get("text_config") or config
    eos = {*_ids(generation.get("eos_token_id")), *_ids(text.get("eos_token_id")), *_ids(tokenizer.eos_token_id)}
    length = min(text.get("max_position_embeddings") or tokenizer.model_max_length, UNLIMITED)
    return ModelInfo(tokenizer, frozenset(eos), int(length), int(text.get("vocab_size") or len(tokenizer)))


def _of_file(path: Path) -> ModelInfo:
    checkpoint = file_format(path)
    assert checkpoint is not None
    tokenizer = checkpoint.tokenizer()
    length = int(min(tokenizer.model_max_length, UNLIMITED))
    return ModelInfo(tokenizer, frozenset(_ids(tokenizer.eos_token_id)), length, len(tokenizer))


def _tokenizer(source: str) -> Any:
    if _file(source, "tokenizer.json"):
        return TokenizersBackend.from_pretrained(source)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source)


def _file(source: str, name: str) -> Path | None:
    if Path(source).is_dir():
        path = Path(source, name)
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(source, name))
    except EntryNotFoundError:
        return None


def read_json(source: str, name: str) -> Mapping[str, Any]:
    """Empty where there is no such file."""
    path = _file(source, name)
    if path is None:
        return {}
    read = json.loads(path.read_bytes())
    return read if isinstance(read, dict) else {}


def _ids(value: Any) -> list[int]:
    return [each for each in (value if isinstance(value, list) else [value]) if each is not None]
