"""The engine thread: drain -> schedule -> run -> deliver, over a model in this process.

Two one-way hand-overs join it to the event loop: a SimpleQueue in, one `call_soon_threadsafe` a step out. Nothing else
is shared but each sequence's `cancelled` flag, which the event loop sets and the scheduler reads.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate, count
from pathlib import Path
from queue import SimpleQueue

import torch
from torch import Tensor

from services.engine.base import EngineStats, ImageReader, Job, Piece, Times, Tokenizer, TokenLogprob
from services.engine.building import build_runner
from services.engine.compilation import Compilation
from services.engine.device import cache_budget
from services.engine.grammar import Grammars
from services.engine.loader import Loaded, load
from services.engine.runner import Runner
from services.engine.sampler import Weighed, sample, weigh
from services.engine.scheduler import Scheduler, Work
from services.engine.sequence import Sequence
from services.engine.shaping import unmaskable
from services.engine.sight import give as give_sight
from services.engine.sight import sight_of
from services.engine.slots import MIN_REUSE
from services.engine.stream import Mailbox, PieceStream
from services.engine.streamer import RequestStreamer
from services.engine.threads import release_team
from services.engine.token_texts import TokenTexts
from services.engine.vision import Vision
from services.engine.warming import warm_up
from services.errors import EngineFailed, InvalidRequest, Overloaded, PromptTooLong, ServiceError, Unavailable

logger = logging.getLogger(__name__)

STALLED = 120  # seconds of one step, after which an engine counts as broken
FAILED = "The engine failed on this request"


@dataclass(slots=True)
class _Request:
    sequence: Sequence
    streamer: RequestStreamer
    mailbox: Mailbox
    submitted: float
    started: float = 0.0  # its first step; 0: not yet
    spoke: float = 0.0  # its first token
    told: bool = False  # a piece of it

    def times(self, now: float) -> Times:
        return Times(self.started - self.submitted, self.spoke - self.started, now - self.spoke)


class _Stop: ...


class LocalEngine:
    def __init__(
        self,
        loaded: Loaded,
        runner: Runner,
        *,
        max_num_batched_tokens: int,
        max_queue: int,
        prefix_cache: bool = True,
        speculation: bool = True,
        block_size: int = 1,
        kv_cache_ratio: float = 1,
        compilation: Compilation | None = None,
    ) -> None:
        self.tokenizer: Tokenizer = loaded.tokenizer
        self.images: ImageReader | None = runner.vision.reader if runner.vision else None
        self._cache_size = runner.cache_tokens or runner.num_slots * runner.length
        self.max_length = min(runner.length, self._cache_size)
        self.device = str(loaded.device)
        self.dtype = str(loaded.dtype).removeprefix("torch.")
        self._eos = loaded.eos
        self._vocabulary = loaded.vocabulary
        self._texts = TokenTexts(loaded.tokenizer)
        self._grammars = Grammars(loaded.tokenizer, loaded.vocabulary, loaded.eos)
        self._compilation = compilation
        self._runner = runner
        self._scheduler = Scheduler(
            runner.num_slots,
            max_num_batched_tokens,
            cache_tokens=runner.cache_tokens,
            min_reuse=MIN_REUSE if prefix_cache and runner.reuses else None,
            speculates=speculation and runner.speculates,
            block_size=block_size,
            page_size=runner.page_size,
            prompt_share=kv_cache_ratio,
        )
        self._max_open = runner.num_slots + max_queue
        self._inbox: SimpleQueue[_Request | Future[None] | _Stop] = SimpleQueue()
        self._requests: dict[Sequence, _Request] = {}  # the engine thread's own
        self._settling: list[Future[None]] = []  # likewise
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._step_began: float | None = None
        self._thread = self._new_thread()

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
        gpu_memory_utilization: float = 0.9,
        cpu_memory_share: float = 0.4,
        prefix_cache: bool = True,
        speculation: bool = True,
        block_size: int = 1,
        num_gpu_blocks_override: int | None = None,
        kv_cache_ratio: float = 1,
        use_warmup: bool = False,
        compile_dir: str | None = None,
        enable_mm: bool | None = None,
    ) -> "LocalEngine":
        """`compile_dir`: where compiled steps are kept; None: steps stay eager."""
        loaded = load(source, device, dtype, enable_mm)
        sight = sight_of(loaded.model, loaded.reader, required=bool(enable_mm))
        length = min(max_model_len or loaded.max_length, loaded.max_length)
        budget = cache_budget(loaded.device, gpu_memory_utilization, cpu_memory_share)
        tokens = num_gpu_blocks_override and num_gpu_blocks_override * block_size
        runner = build_runner(loaded.model, num_slots=max_num_seqs, length=length, budget=budget, cache_tokens=tokens)
        give_sight(sight, runner, required=bool(enable_mm))
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
        compilation = runner.compilation(source, Path(compile_dir)) if compile_dir else None
        return cls(
            loaded,
            runner,
            max_num_batched_tokens=max_num_batched_tokens,
            max_queue=max_queue,
            prefix_cache=prefix_cache,
            speculation=speculation,
            block_size=block_size,
            kv_cache_ratio=kv_cache_ratio,
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
            await asyncio.to_thread(self._join)  # and not an answer, which a dead thread would owe for ever

    async def submit(self, job: Job) -> AsyncGenerator[Piece, None]:
        self._check_room()
        if not job.prompt:
            raise InvalidRequest("The prompt is empty", param=job.param)
        if job.images and self.images is None:
            raise InvalidRequest("This model takes text only", param=job.param)
        room = self.max_length - len(job.prompt)
        if room < 1:
            raise PromptTooLong(_too_long(job, self.max_length), param=job.param)
        self._check_ids(job.param, (min(job.prompt), max(job.prompt)))
        self._check_ids("logit_bias", job.sampling.logit_bias)
        self._check_ids("stop_token_ids", job.sampling.stop_token_ids)
        matcher = await self._grammars.matcher(job.sampling.grammar) if job.sampling.grammar else None
        self._check_room()  # nothing is awaited from here on
        sequence = Sequence(job, min(job.sampling.max_tokens or room, room), job.sampling.ends(self._eos), matcher)
        streamer = RequestStreamer(self.tokenizer, job.prompt, job.sampling, self._eos)
        mailbox = Mailbox()
        self._loop = asyncio.get_running_loop()
        self._inbox.put(_Request(sequence, streamer, mailbox, time.monotonic()))
        return PieceStream(sequence, mailbox)

    def _check_room(self) -> None:
        if self._stopping:
            raise Unavailable("The model is being unloaded")
        stats = self.stats()
        if stats.running + stats.waiting >= self._max_open:
            raise Overloaded("The queue is full")

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
            prefix_queried=self._scheduler.num_queried,
            prefix_reused=self._scheduler.num_reused,
            drafted=self._scheduler.num_drafted,
            accepted=self._scheduler.num_accepted,
            preemptions=self._scheduler.num_preemptions,
            stalled=self._is_stalled(),
        )

    async def settle(self) -> None:
        """Returns once nothing runs and nothing waits, and all that was held has been given back."""
        settled: Future[None] = Future()
        self._inbox.put(settled)
        await asyncio.wrap_future(settled)

    def _is_stalled(self) -> bool:
        began = self._step_began
        return began is not None and time.monotonic() - began > STALLED

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._run, name="engine", daemon=True)

    def _join(self) -> None:
        while (thread := self._thread).is_alive():
            thread.join()

    # --- the engine's thread from here on ---

    def _run(self) -> None:
        """Whatever ends this thread but a stop, another takes its place: nobody would be answered any more."""
        try:
            self._serve()
        except BaseException:
            logger.critical("the engine's thread died, another takes over", exc_info=True)
            try:
                self._end(self._scheduler.drop_all(), EngineFailed(FAILED))
            finally:
                self._thread = self._new_thread()
                self._thread.start()
        else:
            self._end(self._scheduler.drop_all(), Unavailable("The server is shutting down"))
            self._settled()
            del self._runner  # its memory, now and not with the last reference to the engine

    def _serve(self) -> None:
        while self._drain():
            self._step_began = time.monotonic()
            try:
                self._step()
            except Exception:
                logger.exception("a step of up to %d sequences failed", self._scheduler.num_running)
                # who waits goes on waiting; where nobody ran, it is they who break it
                self._end(self._scheduler.drop_running() or self._scheduler.drop_all(), EngineFailed(FAILED))
            finally:
                self._step_began = None

    def _drain(self) -> bool:
        """Takes in what was submitted, and blocks while there is nothing to do; False: it is time to stop."""
        while self._scheduler.is_idle or not self._inbox.empty():
            if self._inbox.empty():
                self._rest()
            match self._inbox.get():
                case _Stop():
                    return False
                case Future() as settling:
                    self._settling.append(settling)
                case _Request() as request:
                    self._requests[request.sequence] = request
                    self._scheduler.add(request.sequence)
        return True

    def _rest(self) -> None:
        """Nothing runs and nothing waits: nobody is owed an answer, and every slot has come home."""
        assert not self._requests
        self._scheduler.check()
        self._settled()
        release_team()

    def _settled(self) -> None:
        for settling in self._settling:
            settling.set_result(None)
        self._settling.clear()

    def _step(self) -> None:
        batch = self._scheduler.schedule()
        self._forget_dropped()
        self._runner.change(batch.changes)
        if not batch.works:
            return
        works = batch.works if self._runner.vision is None else self._seen(batch.works, self._runner.vision)
        self._note_start(works)
        logits = self._try(works) if works else None
        if logits is None:
            return
        sampling = [work for work in works if work.samples]
        rows = list(accumulate((work.num_logits for work in sampling), initial=0))
        for work in works:
            work.sequence.num_computed += work.num_tokens - len(work.draft)
        if sampling:
            self._draw_drafts(list(zip(sampling, rows, strict=False)), logits)

    def _seen(self, works: list[Work], vision: Vision) -> list[Work]:
        """Those whose images could be looked at: one that cannot must not cost the others their step."""
        blind = []
        for work in works:
            try:
                vision.look(work)
            except Exception:
                logger.exception("an image of request %s could not be looked at", work.sequence.job.id)
                blind.append(work.sequence)
        self._fail_alone(blind, "its images cannot be seen")
        return [work for work in works if work.sequence not in blind]

    def _try(self, works: list[Work]) -> Tensor | None:
        """A step's logits; None where it found no memory, and is tried again in smaller ones."""
        try:
            return self._runner.run(works)
        except RuntimeError as error:
            if not _is_out_of_memory(error) or not self._scheduler.shrink():
                raise
            logger.warning("out of memory in a step of %d sequences, trying smaller ones: %s", len(works), error)
        torch.cuda.empty_cache()
        return None

    def _note_start(self, works: list[Work]) -> None:
        for request in (self._requests[work.sequence] for work in works):
            request.started = request.started or time.monotonic()

    def _draw_drafts(self, drawing: list[tuple[Work, int]], logits: Tensor) -> None:
        """Works with the first of their rows: one token each, then those behind it, as if each had a step of its own,
        as long as the draft was right."""
        for depth in count():
            rows = [row + depth for _, row in drawing]
            self._draw([work.sequence for work, _ in drawing], logits if len(rows) == len(logits) else logits[rows])
            for work, _ in drawing:
                if work.draft and not _was_right(work, depth):
                    self._scheduler.judge(work, depth)
            drawing = [(work, row) for work, row in drawing if _was_right(work, depth)]
            for work, _ in drawing:
                work.sequence.num_computed += 1
            if not drawing:
                return

    def _draw(self, sequences: list[Sequence], logits: Tensor) -> None:
        for broken, why in ((_broken, "its logits are not numbers"), (unmaskable, "its grammar allows no token")):
            if rows := broken(logits, sequences):
                self._fail_alone([sequences[row] for row in rows], why)
                whole = [row for row in range(len(sequences)) if row not in rows]
                sequences, logits = [sequences[row] for row in whole], logits[whole]
        if sequences:
            drawn = sample(logits, sequences)
            tokens = [sequence.insist(token) for sequence, token in zip(sequences, drawn, strict=True)]
            self._advance(sequences, tokens, weigh(logits, sequences, tokens))

    def _advance(self, sequences: list[Sequence], tokens: list[int], weighed: dict[Sequence, Weighed]) -> None:
        deliveries: list[tuple[Mailbox, Piece | ServiceError]] = []
        broken = []
        for sequence, token in zip(sequences, tokens, strict=True):
            request = self._requests[sequence]
            try:
                piece = self._append(request, token, weighed.get(sequence))
            except Exception:  # one request's text must not cost the others theirs
                logger.exception("no text for a token of request %s", sequence.job.id)
                broken.append(sequence)
            else:
                if piece:
                    deliveries.append((request.mailbox, piece))
        self._deliver(deliveries)
        self._fail_alone(broken, "its tokens give no text")

    def _append(self, request: _Request, token: int, weighed: Weighed | None) -> Piece | None:
        sequence, streamer = request.sequence, request.streamer
        sequence.tokens.append(token)
        streamer.put(token, self._named(token, weighed))
        if sequence.matcher and not streamer.finish:
            sequence.matcher.advance(token)
            if sequence.matcher.is_over:
                streamer.end("stop")
        if sequence.num_sampled >= sequence.max_tokens:
            streamer.end("length")
        sequence.finished = streamer.finish is not None
        now = time.monotonic()
        request.spoke = request.spoke or now
        piece = streamer.take()
        if piece and (piece.finish or not request.told):
            request.told = True
            times = request.times(now) if piece.finish else None
            return replace(piece, cached_tokens=sequence.num_reused or 0, times=times)
        return piece

    def _named(self, token: int, weighed: Weighed | None) -> TokenLogprob | None:
        if weighed is None:
            return None
        top = tuple(map(self._texts.named, weighed.ids, weighed.logprobs))
        return self._texts.named(token, weighed.logprob, top)

    def _forget_dropped(self) -> None:
        """Whose slot is free; one that was cancelled since the batch was made still has its own."""
        for sequence in [each for each in self._requests if each.is_over and each.slot is None]:
            del self._requests[sequence]

    def _fail_alone(self, sequences: list[Sequence], why: str) -> None:
        for sequence in sequences:
            logger.error("request %s failed: %s", sequence.job.id, why)
            self._scheduler.fail(sequence)
        self._end(sequences, EngineFailed(FAILED))

    def _end(self, sequences: list[Sequence], error: ServiceError) -> None:
        requests = [self._requests.pop(sequence) for sequence in sequences if sequence in self._requests]
        self._deliver([(request.mailbox, error) for request in requests])

    def _deliver(self, items: list[tuple[Mailbox, Piece | ServiceError]]) -> None:
        """One wake-up of the event loop a step, not a token: 60 streams cost one hop."""
        if items and self._loop:
            with suppress(RuntimeError):  # the loop is closed, nobody is left to read
                self._loop.call_soon_threadsafe(_hand_over, items)


def _hand_over(items: list[tuple[Mailbox, Piece | ServiceError]]) -> None:
    for mailbox, item in items:
        mailbox.put_nowait(item)


def _was_right(work: Work, depth: int) -> bool:
    """Whether the token just drawn was guessed, so that the one behind it can be drawn from the same step."""
    guessed = depth < len(work.draft) and work.draft[depth] == work.sequence.tokens[-1]
    return guessed and not work.sequence.finished


def _broken(logits: Tensor, sequences: list[Sequence]) -> list[int]:
    """Rows that nothing can be drawn from."""
    rows: list[int] = logits.amax(-1).isfinite().logical_not().nonzero()[:, 0].tolist()
    return rows


def _is_out_of_memory(error: RuntimeError) -> bool:
    """The CPU's allocator has no class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


def _too_long(job: Job, limit: int) -> str:
    return f"The prompt has {len(job.prompt)} tokens, and this model's context is {limit} tokens, answer included"
