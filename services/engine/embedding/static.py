"""StaticEmbedding (model2vec): a text's vector is the mean of its tokens' vectors, which no model computes."""

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn.functional import embedding_bag
from transformers import PreTrainedTokenizerFast
from transformers.utils import cached_file

from services.engine.embedding.encoder import Floats, Tokens
from services.errors import EngineFailed

NAMES = ("embedding.weight", "embeddings")  # as sentence-transformers and model2vec call the table
UNLIMITED = 10**6  # tokens of a text


class StaticEncoder:
    """An `Encode`."""

    pads = False

    def __init__(self, table: Tensor, modules: nn.Module) -> None:
        """`table` [vocabulary, size]; `modules`: what is behind it."""
        self._table = table.float()
        self._modules = modules.to(table.device)
        self.device = str(table.device)
        self.dtype = "float32"
        self.dimensions = self([[0]]).shape[1]

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Tokens]) -> Floats:
        tokens = torch.tensor(list(chain.from_iterable(rows)), device=self._table.device)
        starts = [0, *accumulate(map(len, rows))][:-1]
        offsets = torch.tensor(starts, device=self._table.device)
        vectors = embedding_bag(tokens, self._table, offsets, mode="mean")
        result: Floats = self._modules(vectors).cpu().numpy()
        return result


def read_table(source: str, folder: str, device: torch.device) -> Tensor:
    path = cached_file(source, "model.safetensors", subfolder=folder, _raise_exceptions_for_missing_entries=False)
    tensors = load_file(path, device=str(device)) if path else {}
    table = next((tensors[name] for name in NAMES if name in tensors), None)
    if table is None:
        raise EngineFailed(f"the embedding model has no table of vectors: no {NAMES[0]} in model.safetensors")
    if others := sorted(tensors.keys() - set(NAMES)):
        raise EngineFailed(f"the embedding model has {others[0]} beside its table of vectors, which is not supported")
    return table


def read_static_tokenizer(source: str, folder: str) -> Any:
    """It adds no tokens to a text."""
    path = cached_file(source, "tokenizer.json", subfolder=folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=path, model_max_length=UNLIMITED)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer
