"""Rows of token ids to vectors: the model, its tokenizer and its pooling."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from services.engine.cpu.compilation import Compilation
from services.engine.cpu.merged_linear import is_coded
from services.engine.embedding.compiled_encoder import CompiledEncoder, EncoderPlan, agrees
from services.engine.embedding.modules import Normalize
from services.engine.embedding.pooling import POOLINGS, PoolingConfig
from services.engine.embedding.sentence_config import lower_case
from services.engine.loading.long_rope import install_long_rope, short_length
from services.engine.loading.remote_code import read_trusted_tokenizer, runs_own_code
from services.engine.loading.weights import read_weights
from services.engine.scheduling.step import LONG_POSITIONS

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Tokens = Sequence[int]


ENCODER_DECODERS = ("t5", "mt5", "umt5")
POOLER = r"(^|\.)pooler\."  # nothing of it reaches the token vectors


def read_encoder(source: str, subfolder: str, dtype: torch.dtype, trusted: bool = False) -> Any:
    """Of an encoder-decoder (T5) the encoder. `trusted`: whether its own code may run."""
    options: dict[str, Any] = {"subfolder": subfolder, "trust_remote_code": runs_own_code(source, trusted, subfolder)}
    config = AutoConfig.from_pretrained(source, **options)
    kind = AutoModelForTextEncoding if config.model_type in ENCODER_DECODERS else AutoModel
    model = read_weights(kind, source, optional=POOLER, dtype=dtype, **options)
    install_long_rope(model)
    return model


def load_tokenizer(source: str, pooling: PoolingConfig, trusted: bool = False) -> Any:
    tokenizer = read_trusted_tokenizer(source, trusted, subfolder=pooling.subfolder)
    if pooling.lower_case:
        lower_case(tokenizer)
    # The file may ask for truncation and padding. The first call turns them off; no later one changes the tokenizer,
    # which threads may therefore share.
    tokenizer("")
    return tokenizer


def max_length(model: Any, tokenizer: Any, pooling: PoolingConfig) -> int:
    """Tokens of one text."""
    limits = (pooling.max_length, getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length)
    return min(limit for limit in limits if limit)


class Encode(Protocol):
    """Rows of token ids, none of them empty, to float32 vectors (rows, dimensions)."""

    @property
    def dimensions(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def pads(self) -> bool:
        """Whether rows of unequal length cost what the longest does."""

    def __call__(self, rows: Sequence[Tokens]) -> Floats: ...


class Encoder:
    """A transformers model and its pooling."""

    def __init__(self, model: Any, pooling: PoolingConfig, modules: nn.Module | None = None) -> None:
        """`modules`: what is behind the pooling; None: at most the normalisation."""
        model.config.use_cache = False  # decoders keep keys and values by default
        self._model = model.eval()
        self._pooling = pooling
        self._compiled: CompiledEncoder | None = None
        self._pad = getattr(model.config, "pad_token_id", None) or 0  # RoBERTa counts its positions by it
        self._modules = (modules or (Normalize() if pooling.normalise else nn.Identity())).to(model.device)
        self.short_length = short_length(model)
        self.device = str(model.device)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.dimensions = self([[1]]).shape[1]  # some models' vectors are wider than they are inside

    @property
    def pads(self) -> bool:
        return not self.is_compiled

    @property
    def is_compiled(self) -> bool:
        return self._compiled is not None

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Tokens]) -> Floats:
        mask = torch.from_numpy(padded([[1] * len(row) for row in rows], 0)).to(self.device)
        hidden = self._hidden(rows, mask)
        weights = mask.unsqueeze(-1).float()
        vectors = torch.cat([POOLINGS[name](hidden, weights) for name in self._pooling.poolings], dim=-1)
        result: Floats = self._modules(vectors).cpu().numpy()
        return result

    def compilation(
        self, source: str, subfolder: str, folder: Path, quantization: str | None = None
    ) -> Compilation | None:
        if self._model.device.type != "cpu" or self.short_length is not None:
            return None
        if type(self._model.config) not in MODEL_MAPPING:  # its own code would be read in another process, too
            return None
        if self._model.config.model_type in ENCODER_DECODERS:  # their attention has a bias, which compiled ones lack
            return None
        plan = EncoderPlan(source, subfolder, self.dtype, is_coded(self._model), quantization)
        return Compilation(plan.file(folder, self._model), plan, self.adopt)

    def adopt(self, file: Path) -> None:
        """Takes a compiled model over, if it agrees with the other; from any thread, between two batches."""
        encoder = CompiledEncoder.load(file, self._model)
        if not agrees(encoder, self._model):
            raise ValueError("it says something else than the model itself")
        self._compiled = encoder
        logger.info("batches are compiled from now on")

    def _hidden(self, rows: Sequence[Tokens], mask: Tensor) -> Tensor:
        """[rows, width, size] in float32"""
        if self._compiled is None:
            ids = torch.from_numpy(padded(rows, self._pad)).to(self.device)
            hidden: Tensor = self._model(input_ids=ids, attention_mask=mask, **self._positions(rows)).last_hidden_state
            return hidden.float()
        tokens = self._compiled(rows)
        whole = tokens.new_zeros(*mask.shape, tokens.shape[-1], dtype=torch.float32)
        whole[mask.bool()] = tokens.float()
        return whole

    def _positions(self, rows: Sequence[Tokens]) -> dict[str, Tensor]:
        """With LongRoPE each text has its own factors, by its length."""
        if (limit := self.short_length) is None:
            return {}
        positions = [[(len(row) > limit) * LONG_POSITIONS + index for index in range(len(row))] for row in rows]
        return {"position_ids": torch.from_numpy(padded(positions, 0)).to(self.device)}


def padded(rows: Sequence[Tokens], filler: int) -> NDArray[np.int64]:
    """On the right, to the longest."""
    whole = np.full((len(rows), max(map(len, rows))), filler, dtype=np.int64)
    for row, values in enumerate(rows):
        whole[row, : len(values)] = values
    return whole
