"""Rows of token ids to vectors: the model, its tokenizer and its pooling."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer

from services.engine.cpu.compilation import Compilation
from services.engine.embedding.compiled_encoder import CompiledEncoder, EncoderPlan, agrees
from services.engine.embedding.pooling import POOLINGS, PoolingConfig

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Tokens = Sequence[int]


def load_tokenizer(source: str, pooling: PoolingConfig) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(source, subfolder=pooling.subfolder)
    if pooling.lower_case:
        backend = tokenizer.backend_tokenizer
        backend.normalizer = Normalizers([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])
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

    def __init__(self, model: Any, pooling: PoolingConfig) -> None:
        model.config.use_cache = False  # decoders keep keys and values by default
        self._model = model.eval()
        self._pooling = pooling
        self._compiled: CompiledEncoder | None = None
        self._pad = getattr(model.config, "pad_token_id", None) or 0  # RoBERTa counts its positions by it
        self.dimensions = model.config.hidden_size * len(pooling.poolings)
        self.device = str(model.device)
        self.dtype = str(model.dtype).removeprefix("torch.")

    @property
    def pads(self) -> bool:
        return self._compiled is None

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Tokens]) -> Floats:
        mask = torch.from_numpy(padded([[1] * len(row) for row in rows], 0)).to(self.device)
        hidden = self._hidden(rows, mask)
        weights = mask.unsqueeze(-1).float()
        vectors = torch.cat([POOLINGS[name](hidden, weights) for name in self._pooling.poolings], dim=-1)
        result: Floats = (normalize(vectors, dim=-1) if self._pooling.normalise else vectors).cpu().numpy()
        return result

    def compilation(self, source: str, subfolder: str, folder: Path) -> Compilation | None:
        if self._model.device.type != "cpu":
            return None
        plan = EncoderPlan(source, subfolder, self.dtype)
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
            hidden: Tensor = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            return hidden.float()
        tokens = self._compiled(rows)
        whole = tokens.new_zeros(*mask.shape, tokens.shape[-1], dtype=torch.float32)
        whole[mask.bool()] = tokens.float()
        return whole


def padded(rows: Sequence[Tokens], filler: int) -> NDArray[np.int64]:
    """On the right, to the longest."""
    whole = np.full((len(rows), max(map(len, rows))), filler, dtype=np.int64)
    for row, values in enumerate(rows):
        whole[row, : len(values)] = values
    return whole
