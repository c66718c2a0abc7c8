"""Token ids to vectors on this machine: one thread, which merges many callers' inputs into batches without waste.

The sentence-transformers configuration in a model's folder (modules.json and what it names) says how token vectors
become one vector; it is read by hand, so that library is not needed.
"""

import asyncio
import contextlib
import json
import logging
import threading
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer
from transformers.utils import cached_file

from services.engine.base import ANYBODY, Embeddings, EngineStats, Tokenizer
from services.engine.cpu.compilation import Compilation
from services.engine.cpu.threads import loads, neighbours, release_team
from services.engine.device.selection import pick_device, pick_dtype
from services.engine.embedding.compiled_encoder import CompiledEncoder, EncoderPlan, agrees, pack_where_it_agrees
from services.engine.loading.loader import ALONE
from services.engine.scheduling.fairness import may_queue, queue_full_message
from services.errors import EngineFailed, InvalidRequest, Overloaded, PromptTooLong, ServiceError, Unavailable

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Tokens = Sequence[int]

# Padded tokens in one batch. Measured on a CPU: 2,048 keep a batch inside the caches, 4,096 are no faster and twice the
# wait for the next caller, 16,384 are 13 to 30 % slower. A GPU has to be filled; its figure is not measured.
BATCH_TOKENS = {"cpu": 2_048, "cuda": 16_384}

# Hidden states (rows, width, size) in float32 and their mask (rows, width, 1) to vectors (rows, size). Rows are padded
# on the right. In the order in which sentence-transformers joins several.
POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": lambda hidden, mask: hidden[:, 0],
    "max": lambda hidden, mask: hidden.masked_fill(mask == 0, -torch.inf).amax(1),
    "mean": lambda hidden, mask: (hidden * mask).sum(1) / mask.sum(1),
    "mean_sqrt_len_tokens": lambda hidden, mask: (hidden * mask).sum(1) / mask.sum(1).sqrt(),
    "weightedmean": lambda hidden, mask: POOLINGS["mean"](hidden, mask * mask.cumsum(1)),  # later tokens count more
    "lasttoken": lambda hidden, mask: hidden.take_along_dim(mask.sum(1, keepdim=True).long() - 1, 1)[:, 0],
}
FLAGS = {  # their names in older configurations, which list all of them as true or false
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


@dataclass(frozen=True, slots=True)
class PoolingConfig:
    """How one model's token vectors become one vector. The defaults hold for a folder that says nothing."""

    poolings: tuple[str, ...] = ("mean",)  # several are joined end to end
    normalise: bool = True
    max_length: int | None = None  # None: whatever the model takes
    lower_case: bool = False
    subfolder: str = ""  # where the transformer lies


def read_pooling_config(source: str) -> PoolingConfig:
    """Raises EngineFailed for a model with modules (a Dense layer, …) or poolings that would be left out here."""
    modules = _read(source, "modules.json")
    if modules is None:
        return PoolingConfig()
    paths = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
    if unknown := sorted(paths.keys() - {"Transformer", "Pooling", "Normalize"}):
        raise EngineFailed(f"the embedding model has a {unknown[0]} module, which is not supported")
    subfolder = paths.get("Transformer", "")
    sentence = _read(source, str(Path(subfolder, "sentence_bert_config.json"))) or {}
    pooling = _read(source, str(Path(paths.get("Pooling", "1_Pooling"), "config.json"))) or {}
    return PoolingConfig(
        poolings=_poolings(pooling),
        normalise="Normalize" in paths,
        max_length=sentence.get("max_seq_length"),
        lower_case=sentence.get("do_lower_case", False),
        subfolder=subfolder,
    )


def _poolings(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("pooling_mode") or [name for name, flag in FLAGS.items() if config.get(flag)] or ["mean"]
    names = (named,) if isinstance(named, str) else tuple(named)
    if unknown := [name for name in names if name not in POOLINGS]:
        raise EngineFailed(f"the embedding model wants {unknown[0]!r} pooling, which is not supported")
    return names


def _read(source: str, name: str) -> Any:
    path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(path).read_text("utf-8")) if path else None


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
    """The model and what its recipe makes of it; the only tensors of this file."""

    def __init__(self, model: Any, pooling: PoolingConfig) -> None:
        model.config.use_cache = False  # decoders keep keys and values unless told
        self._model = model.eval()
        self._recipe = pooling
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
        vectors = torch.cat([POOLINGS[name](hidden, weights) for name in self._recipe.poolings], dim=-1)
        result: Floats = (normalize(vectors, dim=-1) if self._recipe.normalise else vectors).cpu().numpy()
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
        log.info("batches are compiled from now on")

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


class Call:
    """One caller's inputs on their way through the batches; the engine's thread owns all but `over` and `future`."""

    def __init__(self, inputs: Sequence[Tokens], dimensions: int, owner: str = ANYBODY) -> None:
        self.owner = owner
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Embeddings] = self._loop.create_future()
        self.over = False  # answered, or its caller has gone: worth no more work
        self.tokens_left = sum(map(len, inputs))
        self._inputs = inputs
        self._untaken = sorted(range(len(inputs)), key=lambda index: -len(inputs[index]))
        self._vectors = np.empty((len(inputs), dimensions), dtype="<f4")
        self._missing = len(inputs)

    @property
    def least(self) -> int:
        """Tokens of the shortest input not yet taken."""
        return len(self._inputs[self._untaken[-1]]) if self._untaken else 0

    def take(self, tokens: int) -> "list[Row]":
        """The shortest inputs not yet taken, worth at most `tokens`; one at least."""
        rows: list[Row] = []
        while self._untaken and (not rows or len(self._inputs[self._untaken[-1]]) <= tokens):
            row = Row(self, index := self._untaken.pop(), self._inputs[index])
            tokens -= len(row.tokens)
            self.tokens_left -= len(row.tokens)
            rows.append(row)
        return rows

    def put_back(self, index: int) -> None:
        insort(self._untaken, index, key=lambda untaken: -len(self._inputs[untaken]))
        self.tokens_left += len(self._inputs[index])

    def add(self, index: int, vector: Floats) -> None:
        self._vectors[index] = vector
        self._missing -= 1
        if not self._missing:
            self.settle(Embeddings(self._vectors.tobytes(), self._vectors.shape[1]))

    def settle(self, outcome: Embeddings | ServiceError) -> None:
        self.over = True
        with contextlib.suppress(RuntimeError):  # its loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._resolve, outcome)

    def _resolve(self, outcome: Embeddings | ServiceError) -> None:
        if self.future.done():
            return
        match outcome:
            case Embeddings():
                self.future.set_result(outcome)
            case _:
                self.future.set_exception(outcome)


@dataclass(frozen=True, slots=True)
class Row:
    call: Call
    index: int
    tokens: Tokens


def share(calls: Sequence[Call], budget: int) -> list[Row]:
    """What is embedded next: every owner gets an equal part of `budget` tokens, and what the small ones leave of theirs
    goes to the larger. So one call never waits for the end of another key's thousands."""
    owners: dict[str, list[Call]] = {}
    for call in calls:
        owners.setdefault(call.owner, []).append(call)
    if len(owners) < 2:
        return _among_calls(calls, budget)
    rows: list[Row] = []
    neediest_last = sorted(owners.values(), key=lambda own: sum(call.tokens_left for call in own))
    for claimants, own in zip(range(len(owners), 0, -1), neediest_last, strict=True):
        part = budget // claimants
        taken = _among_calls(_first(own, part), part)
        budget = max(0, budget - sum(len(row.tokens) for row in taken))
        rows += taken
    return rows


def _first(calls: Sequence[Call], budget: int) -> list[Call]:
    """As many as may have an input each; one at least."""
    lengths = accumulate(call.least for call in calls)
    return [
        call for index, (call, length) in enumerate(zip(calls, lengths, strict=True)) if not index or length <= budget
    ]


def _among_calls(calls: Sequence[Call], budget: int) -> list[Row]:
    """An equal part for every call: one with one input never waits for the end of one with thousands."""
    rows: list[Row] = []
    neediest_last = sorted(calls, key=lambda call: call.tokens_left)
    for claimants, call in zip(range(len(calls), 0, -1), neediest_last, strict=True):
        taken = call.take(budget // claimants)
        budget = max(0, budget - sum(len(row.tokens) for row in taken))
        rows += taken
    return rows


def cut(rows: Sequence[Row], budget: int, *, pads: bool = True) -> Iterator[list[Row]]:
    """Batches of similar lengths, at most `budget` tokens each, padding and all (a longer row stands alone)."""
    batch: list[Row] = []
    real = 0
    for row in sorted(rows, key=lambda row: len(row.tokens)):
        real += len(row.tokens)
        padded = len(row.tokens) * (len(batch) + 1) if pads else real
        # a batch of its own costs about as much as a sixteenth of a full one in padding
        if batch and (padded > budget or padded - real > budget // 16):
            yield batch
            batch, real = [], len(row.tokens)
        batch.append(row)
    if batch:
        yield batch


class LocalEmbedder:
    """An `EmbeddingEngine`. The event loop puts calls in a queue; the engine's thread blocks on it while idle."""

    def __init__(
        self,
        encode: Encode,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        batch_tokens: int | None = None,
        max_waiting: int = 16_384,
        compilation: Compilation | None = None,
    ) -> None:
        """`max_waiting`: inputs held for all owners together. A call beyond it is refused, but never an owner's only
        one, nor while it holds less than its share."""
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.dimensions = encode.dimensions
        self.device = encode.device
        self.dtype = encode.dtype
        self._encode = encode
        self._compilation = compilation
        self._batch_tokens = batch_tokens or BATCH_TOKENS.get(torch.device(encode.device).type, BATCH_TOKENS["cpu"])
        self._max_waiting = max_waiting
        self._queue: SimpleQueue[Call | None] = SimpleQueue()  # None: stop
        self._thread: threading.Thread | None = None
        self._held: Counter[str] = Counter()  # inputs of each owner's calls; counted on the event loop only
        self._running = 0

    @classmethod
    @loads
    def load(
        cls,
        *,
        source: str,
        device: str = "auto",
        dtype: str = "auto",
        batch_tokens: int | None = None,
        max_waiting: int = 16_384,
        compile_dir: str | None = None,
    ) -> "LocalEmbedder":
        """Reads a local folder or a hub name; blocking. Without a sentence-transformers configuration the vectors are
        the normalised mean of the token vectors."""
        pooling = read_pooling_config(source)
        place = pick_device(device)
        # bfloat16 on a CPU that multiplies it: 2.8 times as fast with all-MiniLM-L6-v2, no vector off by more than 2e-4
        # (cosine). Attention is torch's own (sdpa) wherever the model has it.
        numbers = pick_dtype(dtype, place)
        with ALONE:
            model = AutoModel.from_pretrained(source, subfolder=pooling.subfolder, dtype=numbers).to(place)
        tokenizer = load_tokenizer(source, pooling)
        pack_where_it_agrees(model)
        encoder = Encoder(model, pooling)
        compilation = encoder.compilation(source, pooling.subfolder, Path(compile_dir)) if compile_dir else None
        return cls(
            encoder,
            tokenizer,
            max_length=max_length(model, tokenizer, pooling),
            batch_tokens=batch_tokens,
            max_waiting=max_waiting,
            compilation=compilation,
        )

    def start(self) -> None:
        if self._compilation:
            self._compilation.start()
        self._thread = threading.Thread(target=self._work, name="embedder", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        if self._compilation:
            self._compilation.stop()
            self._compilation = None
        if thread := self._thread:
            self._thread = None  # nothing is put behind the None
            self._queue.put(None)
            await asyncio.to_thread(thread.join)

    async def embed(self, inputs: Sequence[Tokens], owner: str = ANYBODY) -> Embeddings:
        """Raises PromptTooLong, Overloaded or Unavailable at once; cancelling it takes the inputs out of the queue."""
        if not inputs:
            return Embeddings(b"", self.dimensions)
        self._check(inputs, owner)
        call = Call(inputs, self.dimensions, owner)
        self._held[owner] += len(inputs)
        self._queue.put(call)
        try:
            return await call.future
        finally:
            call.over = True
            self._held[owner] -= len(inputs)
            self._held = +self._held  # without those who have left

    def stats(self) -> EngineStats:
        return EngineStats(running=self._running, waiting=max(0, sum(list(self._held.values())) - self._running))

    def _check(self, inputs: Sequence[Tokens], owner: str) -> None:
        if not (self._thread and self._thread.is_alive()):
            raise Unavailable("the embedding engine is not running")
        if not may_queue(self._held, owner, len(inputs), self._max_waiting):
            raise Overloaded(queue_full_message("too many inputs are waiting to be embedded", self._held, owner))
        if not min(map(len, inputs)):
            raise InvalidRequest("an input without tokens cannot be embedded")
        if (longest := max(map(len, inputs))) > self.max_length:
            raise PromptTooLong(longest, self.max_length, param="input")

    def _work(self) -> None:
        pending: list[Call] = []
        try:
            while self._receive(pending) and self._round(pending):
                pass
        finally:
            for call in pending:
                call.settle(Unavailable("the embedding engine has stopped"))

    def _round(self, pending: list[Call]) -> bool:
        """Ends early where another owner comes in, who would wait for all of it. False: stop."""
        owners = {call.owner for call in pending}
        batches = deque(cut(share(pending, self._batch_tokens), self._batch_tokens, pads=self._encode.pads))
        while batches:
            self._run([row for row in batches.popleft() if not row.call.over])
            if batches and not self._receive(pending):
                return False
            if any(call.owner not in owners for call in pending):
                break
        for row in (row for batch in batches for row in batch):
            row.call.put_back(row.index)
        return True

    def _receive(self, pending: list[Call]) -> bool:
        """Drops the calls that are over and adds the new ones, blocking while there is no work. False: stop."""
        pending[:] = [call for call in pending if not call.over]
        while not pending or not self._queue.empty():
            if self._queue.empty():
                release_team()
            call = self._queue.get()
            if call is None:
                return False
            pending.append(call)
        return True

    def _run(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        try:
            vectors = self._vectors(rows)
        except Exception:
            log.exception("embedding a batch of %d inputs failed", len(rows))
            for call in {row.call for row in rows}:
                call.settle(EngineFailed("the embedding model failed on this input"))
        else:
            for row, vector in zip(rows, vectors, strict=True):
                row.call.add(row.index, vector)

    def _vectors(self, rows: Sequence[Row]) -> Floats:
        self._running = len(rows)
        try:
            with neighbours.watched():
                return self._encode([row.tokens for row in rows])
        finally:
            self._running = 0
