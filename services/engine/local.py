"""The engine thread: drain -> schedule -> run -> deliver, over a model in this process.

Two one-way hand-overs join it to the event loop: a SimpleQueue in, one `call_soon_threadsafe` a step out. Nothing else
is shared but each sequence's `cancelled` flag, which the event loop sets and the scheduler reads.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from services.engine.base import EngineStats, Job, Piece, Tokenizer, TokenLogprob
from services.engine.compiled import Compilation
from services.engine.device import free_memory
from services.engine.loader import Loaded, load
from services.engine.runner import Runner, build_runner
from services.engine.sampler import Weighed, sample, weigh
from services.engine.scheduler import Scheduler
from services.engine.sequence import Sequence
from services.engine.slots import MIN_REUSE
from services.engine.streamer import RequestStreamer
from services.engine.token_texts import TokenTexts
from services.errors import EngineFailed, InvalidRequest, Overloaded, PromptTooLong, ServiceError, Unavailable

logger = logging.getLogger(__name__)

CACHE_SHARE = 0.4  # of the memory that is free once the weights are loaded


class PieceStream(AsyncGenerator[Piece, None]):
    """What `submit` returns: the pieces of one sequence, which ends when this is closed.

    A class and not a generator function, because closing a generator that was never started runs none of its code.
    """

    def __init__(self, sequence: Sequence) -> None:
        self._sequence = sequence
        self._queue: asyncio.Queue[Piece | ServiceError] = asyncio.Queue()
        self._done = False

    def deliver(self, item: Piece | ServiceError) -> None:
        self._queue.put_nowait(item)

    async def asend(self, value: None, /) -> Piece:
        if self._done:
            raise StopAsyncIteration
        try:
            item = await self._queue.get()
        except asyncio.CancelledError:
            self._close()
            raise
        if isinstance(item, ServiceError):
            self._close()
            raise item
        if item.finish:
            self._close()
        return item

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
        /,
    ) -> Piece:
        self._close()
        raise typ

    async def aclose(self) -> None:
        self._close()

    def _close(self) -> None:
        self._done = True
        self._sequence.cancelled = True


@dataclass(frozen=True, slots=True)
class _Request:
    sequence: Sequence
    streamer: RequestStreamer
    stream: PieceStream


class _Stop: ...


class LocalEngine:
    def __init__(
        self,
        loaded: Loaded,
        runner: Runner,
        *,
        max_num_batched_tokens: int,
        max_queue: int,
        compilation: Compilation | None = None,
    ) -> None:
        self.tokenizer: Tokenizer = loaded.tokenizer
        self.max_length = runner.length
        self.device = str(loaded.device)
        self.dtype = str(loaded.dtype).removeprefix("torch.")
        self._eos = loaded.eos
        self._vocabulary = loaded.vocabulary
        self._texts = TokenTexts(loaded.tokenizer)
        self._compilation = compilation
        self._runner = runner
        self._scheduler = Scheduler(
            runner.num_slots, max_num_batched_tokens, min_reuse=MIN_REUSE if runner.reuses else None
        )
        self._max_open = runner.num_slots + max_queue
        self._cache_size = runner.num_slots * runner.length
        self._inbox: SimpleQueue[_Request | _Stop] = SimpleQueue()
        self._requests: dict[Sequence, _Request] = {}  # the engine thread's own
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @classmethod
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
        compile_dir: str | None = None,
    ) -> "LocalEngine":
        """`compile_dir`: where compiled steps are kept; None: steps stay eager."""
        loaded = load(source, device, dtype)
        length = min(max_model_len or loaded.max_length, loaded.max_length)
        budget = int(CACHE_SHARE * free_memory(loaded.device))
        runner = build_runner(loaded.model, num_slots=max_num_seqs, length=length, budget=budget)
        logger.info(
            "%s on %s in %s: %d sequences of %d tokens, %s",
            type(loaded.model).__name__,
            loaded.device,
            loaded.dtype,
            runner.num_slots,
            runner.length,
            type(runner).__name__,
        )
        compilation = runner.compilation(source, Path(compile_dir)) if compile_dir else None
        return cls(
            loaded,
            runner,
            max_num_batched_tokens=max_num_batched_tokens,
            max_queue=max_queue,
            compilation=compilation,
        )

    def start(self) -> None:
        self._thread.start()
        if self._compilation:
            self._compilation.start()

    async def stop(self) -> None:
        """Ends what is running with Unavailable and waits for the thread to let go of the model."""
        self._stopping = True
        if self._compilation:
            self._compilation.stop()
        if self._thread.is_alive():
            self._loop = asyncio.get_running_loop()
            self._inbox.put(_Stop())
            await asyncio.to_thread(self._thread.join)  # and not an answer, which a dead thread would owe for ever

    async def submit(self, job: Job) -> AsyncGenerator[Piece, None]:
        if self._stopping:
            raise Unavailable("The model is being unloaded")
        if not job.prompt:
            raise InvalidRequest("The prompt is empty", param="messages")
        room = self.max_length - len(job.prompt)
        if room < 1:
            raise PromptTooLong(_too_long(job, self.max_length), param="messages")
        self._check_ids("logit_bias", job.sampling.logit_bias)
        self._check_ids("stop_token_ids", job.sampling.stop_token_ids)
        stats = self.stats()
        if stats.running + stats.waiting >= self._max_open:
            raise Overloaded("The queue is full")
        sequence = Sequence(job, min(job.sampling.max_tokens or room, room), job.sampling.ends(self._eos))
        streamer = RequestStreamer(self.tokenizer, job.prompt, job.sampling, self._eos)
        stream = PieceStream(sequence)
        self._loop = asyncio.get_running_loop()
        self._inbox.put(_Request(sequence, streamer, stream))
        return stream

    def _check_ids(self, param: str, ids: Iterable[int]) -> None:
        if not all(0 <= token < self._vocabulary for token in ids):
            raise InvalidRequest(f"'{param}': this model's token ids are 0 to {self._vocabulary - 1}", param=param)

    def stats(self) -> EngineStats:
        """Read from any thread: each number is right, together they may be of two neighbouring steps."""
        return EngineStats(
            running=self._scheduler.num_running,
            waiting=self._scheduler.num_waiting + self._inbox.qsize(),
            cache_used=self._scheduler.num_cached,
            cache_size=self._cache_size,
        )

    # --- the engine's thread from here on ---

    def _run(self) -> None:
        while self._drain():
            try:
                self._step()
            except Exception:
                logger.exception("a step of up to %d sequences failed", self._scheduler.num_running)
                self._fail(EngineFailed("The engine failed on this request"))
        self._fail(Unavailable("The server is shutting down"))
        del self._runner  # its memory, now and not with the last reference to the engine

    def _drain(self) -> bool:
        """Takes in what was submitted, and blocks while there is nothing to do; False: it is time to stop."""
        while self._scheduler.is_idle or not self._inbox.empty():
            request = self._inbox.get()
            if isinstance(request, _Stop):
                return False
            self._requests[request.sequence] = request
            self._scheduler.add(request.sequence)
        return True

    def _step(self) -> None:
        plan = self._scheduler.schedule()
        batch = plan.works
        self._forget_dropped()
        self._runner.change(plan.changes)
        if not batch:
            return
        logits = self._runner.run(batch)
        sampling = [work.sequence for work in batch if work.samples]
        for work in batch:
            work.sequence.num_computed += work.num_tokens
        if sampling:
            tokens = sample(logits, sampling)
            self._advance(sampling, tokens, weigh(logits, sampling, tokens))

    def _advance(self, sequences: list[Sequence], tokens: list[int], weighed: dict[Sequence, Weighed]) -> None:
        deliveries = []
        for sequence, token in zip(sequences, tokens, strict=True):
            request = self._requests[sequence]
            sequence.tokens.append(token)
            request.streamer.put(token, self._named(token, weighed.get(sequence)))
            if sequence.num_sampled >= sequence.max_tokens:
                request.streamer.end("length")
            sequence.finished = request.streamer.finish is not None
            if piece := request.streamer.take():
                deliveries.append((request.stream, piece))
        self._deliver(deliveries)

    def _named(self, token: int, weighed: Weighed | None) -> TokenLogprob | None:
        if weighed is None:
            return None
        top = tuple(map(self._texts.named, weighed.ids, weighed.logprobs))
        return self._texts.named(token, weighed.logprob, top)

    def _forget_dropped(self) -> None:
        """Whose slot is free; one that was cancelled since the batch was made still has its own."""
        for sequence in [each for each in self._requests if each.is_over and each.slot is None]:
            del self._requests[sequence]

    def _fail(self, error: ServiceError) -> None:
        self._scheduler.drop_all()
        self._deliver([(request.stream, error) for request in self._requests.values()])
        self._requests.clear()

    def _deliver(self, items: list[tuple[PieceStream, Any]]) -> None:
        """One wake-up of the event loop a step, not a token: 60 streams cost one hop."""
        if items and self._loop:
            with suppress(RuntimeError):  # the loop is closed, nobody is left to read
                self._loop.call_soon_threadsafe(_hand_over, items)


def _hand_over(items: list[tuple[PieceStream, Any]]) -> None:
    for stream, item in items:
        stream.deliver(item)


def _too_long(job: Job, limit: int) -> str:
    return f"The prompt has {len(job.prompt)} tokens, and this model's context is {limit} tokens, answer included"
