"""Pairs of texts to scores by a cross-encoder, in the embedder's batches: a vector of one number for each pair."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from services.engine.base import Pair
from services.engine.cpu.threads import loads
from services.engine.device.selection import pick_device, pick_dtype
from services.engine.embedding.compiled_encoder import pack_where_it_agrees
from services.engine.embedding.embedder import LocalEmbedder
from services.engine.embedding.encoder import Floats, Tokens, load_tokenizer, max_length, padded
from services.engine.embedding.pooling import PoolingConfig
from services.engine.embedding.quantized_encoder import check_method, quantise_encoder
from services.engine.loading.loader import ALONE
from services.engine.loading.weights import read_weights
from services.errors import EngineFailed

# Logits (rows, labels) to how well the second text answers the first, 0 to 1. Models without a bound are squeezed too:
# their order stays, and clients may compare.
SCORES: dict[int, Callable[[Tensor], Tensor]] = {
    1: lambda logits: logits.sigmoid(),
    2: lambda logits: logits.softmax(-1)[:, 1:],  # the second label is "yes"
}


class CrossEncoder:
    dimensions = 1
    pads = True

    def __init__(self, model: Any) -> None:
        if model.config.num_labels not in SCORES:
            raise EngineFailed(f"a reranker says one thing of a pair, this model {model.config.num_labels}")
        self._model = model.eval()
        self._score = SCORES[model.config.num_labels]
        self._pad = getattr(model.config, "pad_token_id", None) or 0
        takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
        self._types = takes_types and getattr(model.config, "type_vocab_size", 1) > 1
        self.device = str(model.device)
        self.dtype = str(model.dtype).removeprefix("torch.")

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Tokens]) -> Floats:
        inputs = {"input_ids": self._tensor(rows, self._pad)}
        inputs["attention_mask"] = self._tensor([[1] * len(row) for row in rows], 0)
        if self._types:
            inputs["token_type_ids"] = self._tensor([row.types for row in rows if isinstance(row, Pair)], 0)
        scores: Floats = self._score(self._model(**inputs).logits.float()).cpu().numpy()
        return scores

    def _tensor(self, rows: Sequence[Tokens], filler: int) -> Tensor:
        return torch.from_numpy(padded(rows, filler)).to(self.device)


class LocalReranker(LocalEmbedder):
    """An `EmbeddingEngine` of Pairs."""

    @classmethod
    @loads
    def load(
        cls,
        *,
        source: str,
        device: str = "auto",
        dtype: str = "auto",
        compile_dir: str | None = None,
        quantization: str | None = None,
        **options: Any,
    ) -> "LocalReranker":
        """Reads a local folder or a hub name of a sequence classification model; blocking.

        `compile_dir`: of kernels."""
        place = pick_device(device)
        method = check_method(quantization, place)
        with ALONE:
            model = read_weights(AutoModelForSequenceClassification, source, dtype=pick_dtype(dtype, place)).to(place)
        folder = Path(compile_dir) if compile_dir else None
        if method:
            quantise_encoder(model.eval().base_model, folder)
        pack_where_it_agrees(model.eval().base_model, folder)
        pooling = PoolingConfig()
        tokenizer = load_tokenizer(source, pooling)
        return cls(CrossEncoder(model), tokenizer, max_length=max_length(model, tokenizer, pooling), **options)
