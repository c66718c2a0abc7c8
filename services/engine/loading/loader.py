"""Reads a model and its tokenizer from a folder, a hub name or a GGUF file. Blocking: call it from a thread."""

import logging
import threading
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import logging as transformers_logging

from services.engine.cpu.kernels import library_path
from services.engine.device.ram import free_ram
from services.engine.device.selection import pick_device, pick_dtype
from services.engine.loading import progress
from services.engine.loading.remote_code import read_trusted_tokenizer, runs_own_code
from services.engine.loading.unusable import UnusableModel
from services.engine.loading.weights import read_weights, refuse_unread_config
from services.engine.parallel.group import RankGroup
from services.engine.parallel.sharding import read_part
from services.engine.parallel.split import SETTING
from services.engine.quantization import AS_STORED, Checkpoint, file_format, weights_file
from services.engine.quantization import method as quantization_method
from services.engine.quantization.block_layers import ensure_kernel
from services.engine.quantization.needed_packages import lacking_packages
from services.engine.quantization.packed_checkpoint import read_packed, weight_format_name
from services.engine.vision.picture_reader import PictureReader, read_processor, refuse_images
from services.errors import EngineFailed

logger = logging.getLogger(__name__)

transformers_logging.disable_progress_bar()  # a server's log is no terminal

# from_pretrained changes torch's default dtype for the whole process while it runs: one model at a time
ALONE = threading.Lock()

EXPANSION = 8  # at most: 4 bits to 32
EXPANSION_SHARE = 0.25  # of the free memory that it may take

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
    quantization: str | None = None  # a method, or AS_STORED
    trust_remote_code: bool = False


def until_kernels_are_built(source: Source, device: str, kernels: Path | None) -> Source:
    """What is read at a machine's first start: a small file of blocks is expanded, so that nobody waits the minute that
    their kernels take. They are built beside serving, for the next start."""
    file = _file(source)
    if kernels is None or source.quantization != AS_STORED or pick_device(device).type != "cpu" or not file.is_file():
        return source
    is_small = file.stat().st_size * EXPANSION < free_ram() * EXPANSION_SHARE
    checkpoint = _checkpoint(source, kernels)
    assert not isinstance(checkpoint, Pretrained)  # it is a file
    if not is_small or library_path(kernels).exists() or not checkpoint.has_blocks:
        return source
    checkpoint.check_blocks()  # not refused at the next start only
    logger.info("weights are expanded at this start: the kernels for their blocks are not built yet")
    return replace(source, quantization=None)


def load(source: Source, device: str = "auto", dtype: str = "auto", kernels: Path | None = None) -> Loaded:
    """`kernels`: the folder of compiled ones, if they may be compiled."""
    place = pick_device(device)
    numbers = pick_dtype(dtype, place)
    model = read_model(source, place, numbers, kernels)
    tokenizer = read_tokenizer(source, kernels)
    return described(source, model, tokenizer, place, numbers)


def read_tokenizer(source: Source, kept: Path | None = None) -> Any:
    """`kept`: a folder for what takes long to be read from a file, if there is one."""
    return _checkpoint(source, kept).tokenizer()


def read_model(
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
    kernels: Path | None = None,
    group: RankGroup | None = None,
) -> Any:
    """With a `group`: this rank's part of it."""
    as_stored = source.quantization == AS_STORED
    method = None if as_stored or not source.quantization else quantization_method(source.quantization, device.type)
    checkpoint = _checkpoint(source, kernels, device.type)
    progress.report("waiting")
    with ALONE:
        progress.report("reading")
        if as_stored and device.type == "cpu" and checkpoint.has_blocks and _has_kernel(kernels):
            model = checkpoint.blocks_model(dtype, enable_mm=source.enable_mm, group=group).eval()
        else:
            model = checkpoint.model(dtype, enable_mm=source.enable_mm, group=group).to(device).eval()
    if method:
        progress.report("quantizing")
        method.quantise(model, kernels)
    return model


def described(source: Source, model: Any, tokenizer: Any, device: torch.device, dtype: torch.dtype) -> Loaded:
    vocabulary = int(model.config.get_text_config().vocab_size)
    reader = _reader(_checkpoint(source).folder, model, tokenizer, source.enable_mm)
    eos, length = _eos(model, tokenizer), _max_length(model, tokenizer)
    return Loaded(model, tokenizer, eos, length, device, dtype, vocabulary, reader)


def split_kind(source: Source) -> tuple[Any, Any]:
    """See `Checkpoint.split_kind`."""
    return _checkpoint(source).split_kind(source.enable_mm)


def _has_kernel(folder: Path | None) -> bool:
    if not (found := ensure_kernel(folder)):
        level = logging.INFO if folder is None else logging.WARNING  # nothing is to be compiled: the operator's choice
        logger.log(level, "there is no kernel for weights in blocks here: they are expanded")
    return found


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A folder or a hub name."""

    folder: str
    trusted: bool = False  # whether its own code may run
    device: str = "cpu"  # torch's type

    @property
    def has_blocks(self) -> bool:
        return self._is_packed(self._config())

    @property
    def runs_own_code(self) -> bool:
        return runs_own_code(self.folder, self.trusted)

    def tokenizer(self) -> Any:
        runs_own_code(self.folder, self.trusted)  # the clearer refusal
        return read_trusted_tokenizer(self.folder, self.trusted)

    def kind(self, enable_mm: bool | None) -> tuple[Any, Any]:
        """Auto class and configuration."""
        config = self._config()
        refuse_unread_config(config, self.folder)
        return AutoModelForImageTextToText if _sees(config, enable_mm) else AutoModelForCausalLM, config

    def split_kind(self, enable_mm: bool | None) -> tuple[Any, Any]:
        if self.runs_own_code:
            raise EngineFailed(f"{SETTING}: a model with code of its own is read in one piece")
        return self.kind(enable_mm)

    def model(self, dtype: Any, *, enable_mm: bool | None, group: RankGroup | None = None) -> Any:
        kind, config = self.kind(enable_mm)
        if self._is_packed(config):
            return self._packed(kind, config, dtype, keep=False)
        read = partial(read_weights, kind, self.folder, dtype=dtype, trust_remote_code=self.runs_own_code)
        try:
            return read_part(read, group)
        except (ImportError, RuntimeError, NotImplementedError) as error:
            if not getattr(config, "quantization_config", None):
                raise
            raise UnusableModel(f"{self.folder} is quantised, and cannot be read here: {error}") from error

    def blocks_model(self, dtype: Any, *, enable_mm: bool | None, group: RankGroup | None = None) -> Any:
        assert group is None  # the leader refuses quantised checkpoints
        return self._packed(*self.kind(enable_mm), dtype, keep=True)

    def _is_packed(self, config: Any) -> bool:
        """A GPU has kernels of others, if they are installed."""
        method = weight_format_name(config)
        return method is not None and (self.device == "cpu" or bool(lacking_packages(method)))

    def _packed(self, kind: Any, config: Any, dtype: Any, *, keep: bool) -> Any:
        trusted = self.runs_own_code
        return read_packed(self.folder, kind, config, dtype, keep=keep, trust_remote_code=trusted)

    def _config(self) -> Any:
        return AutoConfig.from_pretrained(self.folder, trust_remote_code=self.runs_own_code)


def _file(source: Source) -> Path:
    """That a path stands for: a folder may have one file of a known format."""
    return weights_file(Path(source.name)) or Path(source.name)


def _checkpoint(source: Source, kept: Path | None = None, device: str = "cpu") -> Checkpoint | Pretrained:
    return file_format(Path(source.name), kept) or Pretrained(source.name, source.trust_remote_code, device)


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
