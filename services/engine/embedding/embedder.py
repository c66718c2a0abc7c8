"""LocalEmbedder: token ids to vectors on this machine, in one thread that serves all callers in turn."""

import asyncio
import logging
import threading
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from services.engine.base import ANYBODY, Embeddings, EngineStats, TextPrompts, Tokenizer
from services.engine.cpu.compilation import Compilation
from services.engine.cpu.threads import loads, neighbours, release_team
from services.engine.device.selection import pick_device, pick_dtype
from services.engine.embedding.batching import Call, Row, cut, share
from services.engine.embedding.compiled_encoder import pack_where_it_agrees
from services.engine.embedding.encoder import Encode, Encoder, Floats, Tokens, load_tokenizer, max_length, read_encoder
from services.engine.embedding.pooling import read_modules, read_pooling_config
from services.engine.embedding.quantized_encoder import check_method, quantise_encoder
from services.engine.embedding.static import UNLIMITED, StaticEncoder, read_static_tokenizer, read_table
from services.engine.loading.loader import ALONE
from services.engine.scheduling.fairness import may_queue, queue_full_message
from services.errors import EngineFailed, InvalidRequest, Overloaded, PromptTooLong, Unavailable

logger = logging.getLogger(__name__)

NO_PROMPTS = TextPrompts()

# Padded tokens in one batch. Measured on a CPU: 2,048 keep a batch inside the caches, 4,096 are no faster and twice the
# wait for the next caller, 16,384 are 13 to 30 % slower. A GPU has to be filled; its figure is not measured.
BATCH_TOKENS = {"cpu": 2_048, "cuda": 16_384}


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
        prompts: TextPrompts = NO_PROMPTS,
    ) -> None:
        """`max_waiting`: inputs held for all owners together. A call beyond it is refused, but never an owner's only
        one, nor while it holds less than its share."""
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.dimensions = encode.dimensions
        self.prompts = prompts
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
        trust_remote_code: bool = False,
        quantization: str | None = None,
    ) -> "LocalEmbedder":
        """Reads a local folder or a hub name; blocking. Without a sentence-transformers configuration the vectors are
        the normalised mean of the token vectors."""
        pooling = read_pooling_config(source)
        place = pick_device(device)
        method = check_method(quantization, place)
        options: dict[str, Any] = {"batch_tokens": batch_tokens, "max_waiting": max_waiting, "prompts": pooling.prompts}
        if pooling.is_static:
            if method:
                raise EngineFailed(f"'quantization': {source} is a table of vectors, without layers")
            table = read_table(source, pooling.subfolder, place)
            tokenizer = read_static_tokenizer(source, pooling.subfolder)
            encode = StaticEncoder(table, read_modules(source, pooling))
            return cls(encode, tokenizer, max_length=UNLIMITED, **options)
        # bfloat16 on a CPU that multiplies it: 2.8 times as fast with all-MiniLM-L6-v2, no vector off by more than 2e-4
        # (cosine). Attention is torch's own (sdpa) wherever the model has it.
        numbers = pick_dtype(dtype, place)
        with ALONE:
            model = read_encoder(source, pooling.subfolder, numbers, trust_remote_code).to(place)
        tokenizer = load_tokenizer(source, pooling, trust_remote_code)
        folder = Path(compile_dir) if compile_dir else None
        if method:
            quantise_encoder(model.eval(), folder)
        pack_where_it_agrees(model, folder)
        encoder = Encoder(model, pooling, read_modules(source, pooling))
        compilation = encoder.compilation(source, pooling.subfolder, folder, method) if folder else None
        length = max_length(model, tokenizer, pooling)
        return cls(encoder, tokenizer, max_length=length, compilation=compilation, **options)

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
            for row, vector in zip(rows, self._vectors(rows), strict=True):
                row.call.add(row.index, vector)
        except Exception:
            logger.exception("embedding a batch of %d inputs failed", len(rows))
            for call in {row.call for row in rows}:
                call.settle(EngineFailed("the embedding model failed on this input"))

    def _vectors(self, rows: Sequence[Row]) -> Floats:
        self._running = len(rows)
        try:
            with neighbours.watched():
                return self._encode([row.tokens for row in rows])
        finally:
            self._running = 0
