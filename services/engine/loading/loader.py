"""Reads a model and its tokenizer from a folder, a hub name or a GGUF file. Blocking: call it from a thread."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GgufConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import logging as transformers_logging

from services.engine.device.selection import pick_device, pick_dtype
from services.engine.quantization.int8 import quantise
from services.engine.vision.picture_reader import PictureReader, read_processor, refuse_images
from services.errors import EngineFailed

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
    reader: PictureReader | None = None  # of a model that also sees


@dataclass(frozen=True, slots=True)
class Source:
    """What is read, and as what."""

    name: str  # a folder, a hub name or a GGUF file
    enable_mm: bool | None = None  # images too; None: where the model takes them
    quantization: Literal["int8"] | None = None


def load(source: Source, device: str = "auto", dtype: str = "auto", kernels: Path | None = None) -> Loaded:
    """`kernels`: where ours are kept, if they may be compiled."""
    place = pick_device(device)
    numbers = pick_dtype(dtype, place)
    if source.quantization and place.type != "cpu":
        raise EngineFailed(f"'quantization': {source.quantization} is for the CPU, this model is on {place.type}")
    folder, options = _where(source.name)
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    config = None if options else AutoConfig.from_pretrained(folder)
    kind = AutoModelForImageTextToText if _sees(config, source.enable_mm) else AutoModelForCausalLM
    if options:
        options["quantization_config"] = GgufConfig(dequantize=True)  # left packed, each product unpacks it again
    with ALONE:
        model = kind.from_pretrained(folder, dtype=numbers, **options).to(place).eval()
    vocabulary = int(model.config.get_text_config().vocab_size)
    reader = _reader(folder, model, tokenizer, source.enable_mm)
    if source.quantization:
        quantise(model, kernels)
    eos, length = _eos(model, tokenizer), _max_length(model, tokenizer)
    return Loaded(model, tokenizer, eos, length, place, numbers, vocabulary, reader)


def _sees(config: Any, enable_mm: bool | None) -> bool:
    """Some kinds come with and without: the latter is all that is needed for text."""
    speaks = config is None or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and (bool(enable_mm) or not speaks)


def _reader(folder: str, model: Any, tokenizer: Any, enable_mm: bool | None) -> PictureReader | None:
    if type(model.config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        if enable_mm:
            refuse_images(type(model).__name__, "they take text only", required=True)
        return None
    try:
        processor = read_processor(folder, model.config, tokenizer)
        tokenizer.chat_template = tokenizer.chat_template or processor.chat_template
        return None if enable_mm is False else PictureReader(processor)
    except Exception as error:  # whatever an unknown processor may lack
        refuse_images(type(model).__name__, error, required=bool(enable_mm))
    return None


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
