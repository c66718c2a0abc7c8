"""A model in this process: what is submitted is checked here, answered by the worker's thread, and read as a stream."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator
from functools import partial
from itertools import count
from typing import Any

from services.engine.base import EngineStats, ImageReader, Job, Piece, Tokenizer
from services.engine.cpu.compilation import Compilation
from services.engine.cpu.kernels import build_beside
from services.engine.cpu.threads import loads
from services.engine.device.resources import cache_budget
from services.engine.device.selection import pick_device
from services.engine.execution.engine_thread import EngineThread
from services.engine.execution.executor import Executor
from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.piece_stream import Mailbox, PieceStream
from services.engine.execution.request import Request
from services.engine.execution.rounded_cache import AUTO, require_kernel
from services.engine.execution.runner import Runner
from services.engine.execution.runner_factory import build_runner
from services.engine.execution.warm_up import warm_up
from services.engine.grammar.compiler import GrammarCompiler
from services.engine.job_check import checked_limit
from services.engine.loading import progress
from services.engine.loading.load_options import LoadOptions
from services.engine.loading.loader import Loaded, Source, load, until_kernels_are_built
from services.engine.lora.adapters import Adapters
from services.engine.parallel.leader import load_parallel
from services.engine.quantization import requested
from services.engine.scheduling.fairness import may_queue, queue_full_message
from services.engine.scheduling.scheduler import Scheduler
from services.engine.scheduling.sequence import Sequence
from services.engine.scheduling.slots import MIN_REUSE
from services.engine.scheduling.step import CacheKey
from services.engine.streamer import RequestStreamer
from services.engine.token_texts import TokenTexts
from services.engine.vision.vision_check import attach_vision, prepare_vision
from services.errors import ModelNotFound, Overloaded, Unavailable

logger = logging.getLogger(__name__)


class LocalEngine:
    resumes = True

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
        adapted_compilation: Compilation | None = None,
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
        self._adapted_compilation = adapted_compilation  # started by the first adapter
        self.scheduler = Scheduler(
            executor.num_slots,
            max_num_batched_tokens,
            cache_tokens=executor.cache_tokens,
            min_reuse=MIN_REUSE if prefix_cache and executor.reuses else None,
            speculative=speculation and executor.supports_drafts,
            block_size=block_size,
            page_size=executor.page_size,
            prompt_share=kv_cache_ratio,
            short_length=executor.short_length,
            snapshots=executor.snapshots if prefix_cache else None,
        )
        self._shares_prefixes = share_prefixes
        self.executor = executor
        self._adapters: dict[str, int] = {}  # by name; an id is never given twice
        self._adapter_ids = count()
        self._max_open = executor.num_slots + max_queue
        self._open: list[Request] = []  # and some that are over
        self.thread = EngineThread(executor, self.scheduler, texts)
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
        kv_cache_dtype: str = AUTO,
        use_warmup: bool = False,
        compile_dir: str | None = None,
        enable_mm: bool | None = None,
        quantization: str | None = None,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
    ) -> "LocalEngine":
        """`compile_dir`: where compiled steps are kept; None: steps stay eager. `tensor_parallel_size`: processes, with
        more than one of which steps stay eager, too."""
        options = LoadOptions(
            device=device,
            dtype=dtype,
            compile_dir=compile_dir,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            cache_tokens=num_gpu_blocks_override and num_gpu_blocks_override * block_size,
            kv_cache_dtype=kv_cache_dtype,
            gpu_memory_utilization=gpu_memory_utilization,
            cpu_memory_share=cpu_memory_share,
            warm_up_tokens=max_num_batched_tokens if use_warmup else None,
        )
        scheduling: dict[str, Any] = {
            "max_num_batched_tokens": max_num_batched_tokens,
            "max_queue": max_queue,
            "prefix_cache": prefix_cache,
            "share_prefixes": share_prefixes,
            "speculation": speculation,
            "block_size": block_size,
            "kv_cache_ratio": kv_cache_ratio,
        }
        origin = Source(source, enable_mm, requested(quantization, dtype), trust_remote_code)
        require_kernel(kv_cache_dtype, pick_device(device).type, options.folder)
        first = until_kernels_are_built(origin, device, options.folder)
        if tensor_parallel_size == 1:
            return cls._load_alone(first, options, scheduling)
        if options.folder and first != origin:
            build_beside(options.folder)  # nothing else is compiled for ranks
        return cls(*load_parallel(first, tensor_parallel_size, options), **scheduling)

    @classmethod
    def _load_alone(cls, source: Source, options: LoadOptions, scheduling: dict[str, Any]) -> "LocalEngine":
        """In this process."""
        loaded, folder = load(source, options.device, options.dtype, options.folder), options.folder
        runner = _runner(loaded, source, options, prefix_cache=scheduling["prefix_cache"])
        if options.warm_up_tokens is not None:
            progress.report("warming_up")
            warm_up(runner, options.warm_up_tokens)
        adapters = Adapters(loaded.model)
        compilation = runner.compilation(source, folder) if folder else None
        adapted = runner.compilation(source, folder, adapters) if folder else None
        executor = LocalExecutor(runner, adapters)
        return cls(loaded, executor, compilation=compilation, adapted_compilation=adapted, **scheduling)

    def start(self) -> None:
        self.thread.start()
        if self._compilation:
            self._compilation.start()

    async def wait_compiled(self) -> bool:
        """Waits until it is decided whether steps are compiled from now on, and says so: those with adapters, too, once
        there is one."""
        started = [each for each in self._compilations if each.has_started]
        return bool(started) and all([await asyncio.to_thread(each.wait) for each in started])

    async def stop(self) -> None:
        """Ends what is running with Unavailable and waits for the thread to let go of the model."""
        self._stopping = True
        for each in self._compilations:
            each.stop()
        await self.thread.stop()  # first: what runs ends at its next step, however long grammars take
        await self._grammars.stop()

    async def load_adapter(self, name: str, folder: str) -> None:
        id = next(self._adapter_ids)
        await asyncio.to_thread(loads(self.executor.add_adapter), id, folder)
        self.unload_adapter(name)
        self._adapters[name] = id
        self._compile_adapted()

    @property
    def _compilations(self) -> list[Compilation]:
        return [each for each in (self._compilation, self._adapted_compilation) if each]

    def _compile_adapted(self) -> None:
        if self._adapted_compilation and not self._adapted_compilation.has_started:
            self._adapted_compilation.start(after=self._compilation)

    def unload_adapter(self, name: str) -> None:
        if (id := self._adapters.pop(name, None)) is not None:
            self.thread.retire_adapter(id)

    async def submit(self, job: Job) -> AsyncGenerator[Piece, None]:
        self._check_room(job.owner)
        limit = checked_limit(
            job, max_length=self.max_length, vocabulary=self._vocabulary, takes_images=self.images is not None
        )
        grammar = job.sampling.grammar
        matcher = await self._grammars.matcher(grammar, job.owner) if grammar else None
        self._check_room(job.owner)  # nothing is awaited from here on
        owner = None if self._shares_prefixes else job.owner
        key = CacheKey(owner, job.cache_salt, adapter=self._adapter(job))
        sequence = Sequence(job, limit, job.sampling.ends(self._eos), matcher, cache_key=key)
        streamer = RequestStreamer(self.tokenizer, job.prompt, job.sampling, self._eos)
        _go_on(sequence, streamer)
        request = Request(sequence, streamer, Mailbox(), time.monotonic())
        self._open.append(request)
        self.thread.submit(request)
        return PieceStream(request.mailbox, partial(self.thread.cancel, request))

    def _adapter(self, job: Job) -> int | None:
        if job.adapter is not None and job.adapter not in self._adapters:  # it was unloaded since it was found
            raise ModelNotFound("The LoRA adapter is no longer loaded", param="model")
        return None if job.adapter is None else self._adapters[job.adapter]

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
            running=self.scheduler.num_running,
            waiting=self.scheduler.num_waiting + self.thread.num_submitted,
            waiting_flex=self.scheduler.num_waiting_flex,
            cache_used=self.scheduler.num_cached,
            cache_size=self._cache_size,
            prefix_queried=self.scheduler.num_queried,
            prefix_reused=self.scheduler.num_reused,
            drafted=self.scheduler.num_drafted,
            accepted=self.scheduler.num_accepted,
            preemptions=self.scheduler.num_preemptions,
            stalled=self.thread.is_stalled,
            lost=self.executor.is_lost,
        )

    async def settle(self) -> None:
        """Returns once nothing runs and nothing waits, and all that was held has been given back."""
        await self.thread.settle()


def _runner(loaded: Loaded, source: Source, options: LoadOptions, *, prefix_cache: bool) -> Runner:
    vision = prepare_vision(loaded.model, loaded.reader, required=bool(source.enable_mm))
    runner = build_runner(
        loaded.model,
        num_slots=options.max_num_seqs,
        length=min(options.max_model_len or loaded.max_length, loaded.max_length),
        budget=cache_budget(loaded.device, options.gpu_memory_utilization, options.cpu_memory_share),
        cache_tokens=options.cache_tokens,
        kv_cache_dtype=options.kv_cache_dtype,
        kernels=options.folder,
        prefix_cache=prefix_cache,
    )
    attach_vision(vision, runner, required=bool(source.enable_mm))
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
    return runner


def _go_on(sequence: Sequence, streamer: RequestStreamer) -> None:
    """Behind the tokens that the answer has already; their text was delivered."""
    for token in sequence.job.sampled:
        sequence.append(token)
        streamer.put(token)
        if sequence.matcher:
            sequence.matcher.advance(token)
    if sequence.job.sampled:
        streamer.take()
        sequence.rewind()
        sequence.num_computed = 0
    if sequence.finished or streamer.finish:
        raise Unavailable("The answer cannot be gone on with here")
