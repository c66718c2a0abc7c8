"""Reads a model and its tokenizer from a folder, a hub name or a GGUF file. Blocking: call it from a thread."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging as transformers_logging

from services.engine.device import pick_device, pick_dtype

transformers_logging.disable_progress_bar()  # a server's log is no terminal

# from_pretrained changes torch's default dtype for the whole process while it runs: one model at a time
ALONE = threading.Lock()

UNLIMITED = 10**9  # tokenizers without a limit of their own say 10**30


@dataclass(frozen=True, slots=True)
class Loaded:
    model: Any  # a transformers model with a language head
    tokenizer: Any
    eos: frozenset[int]
    max_length: int  # tokens
    device: torch.device
    dtype: torch.dtype
    vocabulary: int  # tokens that the logits speak of


def load(source: str, device: str = "auto", dtype: str = "auto") -> Loaded:
    place = pick_device(device)
    numbers = pick_dtype(dtype, place)
    folder, options = _where(source)
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    if options:
        options["quantization_config"] = GgufConfig(dequantize=True)  # left packed, each product unpacks it again
    with ALONE:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=numbers, **options).to(place).eval()
    vocabulary = int(model.config.get_text_config().vocab_size)
    return Loaded(model, tokenizer, _eos(model, tokenizer), _max_length(model, tokenizer), place, numbers, vocabulary)


def _where(source: str) -> tuple[str, dict[str, Any]]:
    path = Path(source)
    if path.suffix == ".gguf" and path.is_file():
        return str(path.parent), {"gguf_file": path.name}
    return source, {}


def _eos(model: Any, tokenizer: Any) -> frozenset[int]:
    """All ids that end an answer: the model's own list and the tokenizer's."""
    ids = model.generation_config.eos_token_id
    listed = ids if isinstance(ids, list) else [ids]
    return frozenset(i for i in [*listed, tokenizer.eos_token_id] if i is not None)


def _max_length(model: Any, tokenizer: Any) -> int:
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return min(int(limit), UNLIMITED)
