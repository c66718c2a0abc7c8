"""Reads a model and its tokenizer from a folder, a hub name or a GGUF file. Blocking: call it from a thread."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import logging as transformers_logging

from services.engine.device.selection import pick_device, pick_dtype
from services.engine.loading.weights import read_weights, refuse_unread_config
from services.engine.quantization import file_format
from services.engine.quantization import method as quantization_method
from services.engine.vision.picture_reader import PictureReader, read_processor, refuse_images

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
    quantization: str | None = None


def load(source: Source, device: str = "auto", dtype: str = "auto", kernels: Path | None = None) -> Loaded:
    """`kernels`: the folder of compiled ones, if they may be compiled."""
    place = pick_device(device)
    numbers = pick_dtype(dtype, place)
    method = quantization_method(source.quantization, place.type) if source.quantization else None
    checkpoint = file_format(Path(source.name)) or Pretrained(source.name)
    tokenizer = checkpoint.tokenizer()
    with ALONE:
        model = checkpoint.model(numbers, enable_mm=source.enable_mm).to(place).eval()
    vocabulary = int(model.config.get_text_config().vocab_size)
    reader = _reader(checkpoint.folder, model, tokenizer, source.enable_mm)
    if method:
        method.quantise(model, kernels)
    eos, length = _eos(model, tokenizer), _max_length(model, tokenizer)
    return Loaded(model, tokenizer, eos, length, place, numbers, vocabulary, reader)


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A folder or a hub name."""

    folder: str

    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.folder)

    def model(self, dtype: Any, *, enable_mm: bool | None) -> Any:
        config = AutoConfig.from_pretrained(self.folder)
        refuse_unread_config(config, self.folder)
        kind = AutoModelForImageTextToText if _sees(config, enable_mm) else AutoModelForCausalLM
        return read_weights(kind, self.folder, dtype=dtype)


def _sees(config: Any, enable_mm: bool | None) -> bool:
    """Some kinds come with and without: the latter is all that is needed for text."""
    speaks = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
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


def _eos(model: Any, tokenizer: Any) -> frozenset[int]:
    """All ids that end an answer: the model's own list and the tokenizer's."""
    ids = model.generation_config.eos_token_id
    listed = ids if isinstance(ids, list) else [ids]
    return frozenset(i for i in [*listed, tokenizer.eos_token_id] if i is not None)


def _max_length(model: Any, tokenizer: Any) -> int:
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return min(int(limit), UNLIMITED)
