"""A model in this process: what is submitted is checked here, answered by the worker's thread, and read as a stream."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path

from services.engine.base import EngineStats, ImageReader, Job, Piece, Tokenizer
from services.engine.cpu.compilation import Compilation
from services.engine.cpu.threads import loads
from services.engine.device.resources import cache_budget
from services.engine.execution.engine_thread import EngineThread
from services.engine.execution.executor import Executor
from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.piece_stream import Mailbox, PieceStream
from services.engine.execution.request import Request
from services.engine.execution.runner_factory import build_runner
from services.engine.execution.warm_up import warm_up
from services.engine.grammar.compiler import GrammarCompiler
from services.engine.job_check import checked_limit
from services.engine.loading.loader import Loaded, Source, load
from services.engine.scheduling.fairness import may_queue, queue_full_message
from services.engine.scheduling.scheduler import Scheduler
from services.engine.scheduling.sequence import Sequence
from services.engine.scheduling.slots import MIN_REUSE
from services.engine.scheduling.step import CacheKey
from services.engine.streamer import RequestStreamer
from services.engine.token_texts import TokenTexts
from services.engine.vision.vision_check import attach_vision, prepare_vision
from services.errors import Overloaded, Unavailable

logger = logging.getLogger(__name__)


class LocalEngine:
    def __init__(
        self,
        loaded: Loaded,
        executor: Executor,
        *,
        max_num_batched_tokens: int,
        max_queue: int,
        prefix_cache: bool = True,
        share_prefixes: bool = False,
        speculation: bool = True,
        block_size: int = 1,
        kv_cache_ratio: float = 1,
        compilation: Compilation | None = None,
    ) -> None:
        self.tokenizer: Tokenizer = loaded.tokenizer
        self.images: ImageReader | None = executor.image_reader
        self._cache_size = executor.cache_tokens or executor.num_slots * executor.length
        self.max_length = min(executor.length, self._cache_size)
        self.device = str(loaded.device)
        self.dtype = str(loaded.dtype).removeprefix("torch.")
        self._eos = loaded.eos
        self._vocabulary = loaded.vocabulary
        texts = TokenTexts(loaded.tokenizer)
        self._grammars = GrammarCompiler(texts, loaded.vocabulary, loaded.eos)
        self._compilation = compilation
        self._scheduler = Scheduler(
            executor.num_slots,
            max_num_batched_tokens,
            cache_tokens=executor.cache_tokens,
            min_reuse=MIN_REUSE if prefix_cache and executor.reuses else None,
            speculative=speculation and executor.supports_drafts,
            block_size=block_size,
            page_size=executor.page_size,
            prompt_share=kv_cache_ratio,
            short_length=executor.short_length,
        )
        self._shares_prefixes = share_prefixes
        self._max_open = executor.num_slots + max_queue
        self._open: list[Request] = []  # and some that are over
        self._thread = EngineThread(executor, self._scheduler, texts)
        self._stopping = False

    @classmethod
    @loads
    def load(
        cls,
        *,
        source: str,
        device: str = "auto",
        dtype: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 32,
        max_num_batched_tokens: int = 512,
        max_queue: int = 256,
        gpu_memory_utilization: float = 0.9,
        cpu_memory_share: float = 0.4,
        prefix_cache: bool = True,
        share_prefixes: bool = False,
        speculation: bool = True,
        block_size: int = 1,
        num_gpu_blocks_override: int | None = None,
        kv_cache_ratio: float = 1,
        use_warmup: bool = False,
        compile_dir: str | None = None,
        enable_mm: bool | None = None,
        quantization: str | None = None,
    ) -> "LocalEngine":
        """`compile_dir`: where compiled steps are kept; None: steps stay eager."""
        origin = Source(source, enable_mm, quantization)
        folder = Path(compile_dir) if compile_dir else None
        loaded = load(origin, device, dtype, folder)
        sight = prepare_vision(loaded.model, loaded.reader, required=bool(enable_mm))
        length = min(max_model_len or loaded.max_length, loaded.max_length)
        budget = cache_budget(loaded.device, gpu_memory_utilization, cpu_memory_share)
        tokens = num_gpu_blocks_override and num_gpu_blocks_override * block_size
        runner = build_runner(loaded.model, num_slots=max_num_seqs, length=length, budget=budget, cache_tokens=tokens)
        attach_vision(sight, runner, required=bool(enable_mm))
        logger.info(
            "%s on %s in %s: %d sequences of %d tokens, %s together, %s",
            type(loaded.model).__name__,
            loaded.device,
            loaded.dtype,
            runner.num_slots,
            runner.length,
            runner.cache_tokens or "full",
            type(runner).__name__,
        )
        if use_warmup:
            warm_up(runner, max_num_batched_tokens)
        compilation = runner.compilation(origin, folder) if folder else None
        return cls(
            loaded,
            LocalExecutor(runner),
            max_num_batched_tokens=max_num_batched_tokens,
            max_queue=max_queue,
            prefix_cache=prefix_cache,
            share_prefixes=share_prefixes,
            speculation=speculation,
            block_size=block_size,
            kv_cache_ratio=kv_cache_ratio,
            compilation=compilation,
        )

    def start(self) -> None:
        self._thread.start()
        if self._compilation:
            self._compilation.start()

    async def wait_compiled(self) -> bool:
        """Waits until it is decided whether steps are compiled from now on, and says so."""
        return self._compilation is not None and await asyncio.to_thread(self._compilation.wait)

    async def stop(self) -> None:
        """Ends what is running with Unavailable and waits for the thread to let go of the model."""
        self._stopping = True
        if self._compilation:
            self._compilation.stop()
        await self._thread.stop()  # first: what runs ends at its next step, however long grammars take
        await self._grammars.stop()

    async def submit(self, job: Job) -> AsyncGenerator[Piece, None]:
        self._check_room(job.owner)
        limit = checked_limit(
            job, max_length=self.max_length, vocabulary=self._vocabulary, takes_images=self.images is not None
        )
        grammar = job.sampling.grammar
        matcher = await self._grammars.matcher(grammar, job.owner) if grammar else None
        self._check_room(job.owner)  # nothing is awaited from here on
        key = CacheKey(None if self._shares_prefixes else job.owner, job.cache_salt)
        sequence = Sequence(job, limit, job.sampling.ends(self._eos), matcher, cache_key=key)
        streamer = RequestStreamer(self.tokenizer, job.prompt, job.sampling, self._eos)
        request = Request(sequence, streamer, Mailbox(), time.monotonic())
        self._open.append(request)
        self._thread.submit(request)
        return PieceStream(request.mailbox, partial(self._thread.cancel, request))

    def _check_room(self, owner: str) -> None:
        if self._stopping:
            raise Unavailable("The model is being unloaded")
        self._open = [each for each in self._open if not (each.closed or each.sequence.finished)]
        held = Counter(each.sequence.job.owner for each in self._open)
        stats = self.stats()
        leaving = max(0, stats.running + stats.waiting - held.total())  # they are over, and still have their places
        if not may_queue(held, owner, 1, self._max_open - leaving):
            raise Overloaded(queue_full_message("The queue is full", held, owner))

    def stats(self) -> EngineStats:
        """Read from any thread: each number is right, together they may be of two neighbouring steps."""
        return EngineStats(
            running=self._scheduler.num_running,
            waiting=self._scheduler.num_waiting + self._thread.num_submitted,
            cache_used=self._scheduler.num_cached,
            cache_size=self._cache_size,
            prefix_queried=self._scheduler.num_queried,
            prefix_reused=self._scheduler.num_reused,
            drafted=self._scheduler.num_drafted,
            accepted=self._scheduler.num_accepted,
            preemptions=self._scheduler.num_preemptions,
            stalled=self._thread.is_stalled,
        )

    async def settle(self) -> None:
        """Returns once nothing runs and nothing waits, and all that was held has been given back."""
        await self._thread.settle()
