"""The engine's thread: takes in requests, steps while there is work, and blocks while there is none.

Two one-way hand-overs join it to the event loop: a SimpleQueue in, for requests and cancellations, and one
`call_soon_threadsafe` a step out. Nothing else is shared, so a step depends only on what the thread took in before it.
"""

import asyncio
import logging
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue

from services.engine.cpu.threads import release_team
from services.engine.execution.engine_core import FAILED, EngineCore
from services.engine.execution.executor import Executor, ExecutorLost
from services.engine.execution.output_processor import Delivery, OutputProcessor
from services.engine.execution.request import Request
from services.engine.scheduling.scheduler import Scheduler
from services.engine.scheduling.sequence import Sequence
from services.engine.token_texts import TokenTexts
from services.errors import EngineFailed, Unavailable

logger = logging.getLogger(__name__)

LOST = "A process of the model has ended; the model is loaded again"
STALLED = 120  # seconds of one step, after which an engine counts as broken


class _Stop: ...


@dataclass(frozen=True, slots=True)
class _Cancellation:
    sequence: Sequence


@dataclass(frozen=True, slots=True)
class _Retirement:
    adapter: int


class EngineThread:
    def __init__(self, executor: Executor, scheduler: Scheduler, texts: TokenTexts) -> None:
        self.core = EngineCore(executor, scheduler, OutputProcessor(texts, self._deliver))
        self.thread = self.new_thread()
        self._scheduler = scheduler
        self._inbox: SimpleQueue[Request | _Cancellation | _Retirement | Future[None] | _Stop] = SimpleQueue()
        self._settling: list[Future[None]] = []  # the thread's own
        self._num_put = 0  # requests; written by the event loop only
        self._num_taken = 0  # of them; written by the thread only
        self._loop: asyncio.AbstractEventLoop | None = None
        self._step_began: float | None = None
        self._is_dead = False  # the thread died, and no other could begin

    @property
    def num_submitted(self) -> int:
        """Requests that the thread has not taken in yet."""
        taken = self._num_taken  # read first: it may only grow meanwhile
        return self._num_put - taken

    @property
    def is_stalled(self) -> bool:
        began = self._step_began
        return self._is_dead or (began is not None and time.monotonic() - began > STALLED)

    def start(self) -> None:
        self.thread.start()

    def submit(self, request: Request) -> None:
        if self._is_dead:  # there was no thread to be had
            self._take_over()
        self._loop = asyncio.get_running_loop()
        self._num_put += 1
        self._inbox.put(request)

    def cancel(self, request: Request) -> None:
        """From any thread, also from a destructor: the queue's `put` is reentrant."""
        if not request.closed:
            request.closed = True
            if not request.sequence.finished:
                self._inbox.put(_Cancellation(request.sequence))

    def retire_adapter(self, id: int) -> None:
        """Requests that were submitted before are answered with it to their end."""
        self._inbox.put(_Retirement(id))

    async def settle(self) -> None:
        """Returns once nothing runs and nothing waits, and all that was held has been given back."""
        settled: Future[None] = Future()
        self._inbox.put(settled)
        await asyncio.wrap_future(settled)

    async def stop(self) -> None:
        """Ends what is running with Unavailable and waits for the thread to let go of the model."""
        if self.thread.is_alive():
            self._loop = asyncio.get_running_loop()
            self._inbox.put(_Stop())
            await asyncio.to_thread(self._join)  # and not an answer, which a dead thread would owe for ever

    def new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._run, name="engine", daemon=True)

    def _take_over(self) -> None:
        """By the thread that dies; where it finds none, by who submits next, and by one of the two only."""
        try:
            thread = self.new_thread()
            thread.start()
        except BaseException:
            self._is_dead = True
            raise
        self.thread, self._is_dead = thread, False

    def _join(self) -> None:
        while (thread := self.thread).is_alive():
            thread.join()

    # --- the thread from here on ---

    def _run(self) -> None:
        """Whatever ends this thread but a stop, another takes its place: nobody would be answered any more."""
        try:
            self._serve()
        except BaseException:
            logger.critical("the engine's thread died, another takes over", exc_info=True)
            try:
                self.core.end_all(EngineFailed(FAILED))
            finally:
                self._take_over()
        else:
            self.core.end_all(Unavailable("The server is shutting down"))
            self._settled()
            self.core.close()  # frees its memory now, not with the last reference to the engine

    def _serve(self) -> None:
        while self._drain():
            self._step_began = time.monotonic()
            try:
                self.core.step()
            except ExecutorLost as error:
                logger.error("this model cannot compute any more: %s", error)
                self.core.lose(Unavailable(LOST))
            except Exception:
                logger.exception("a step of up to %d sequences failed", self._scheduler.num_running)
                self.core.fail_step()
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
                case _Cancellation(sequence):
                    sequence.cancelled = True
                case _Retirement(adapter):
                    self.core.retire_adapter(adapter)
                case Request() as request:
                    self._num_taken += 1
                    self.core.add(request)
        return True

    def _rest(self) -> None:
        """Nothing runs and nothing waits: nobody is owed an answer, and every slot has come home."""
        assert not self.core.has_requests
        self._scheduler.check()
        self._settled()
        release_team()

    def _settled(self) -> None:
        for settling in self._settling:
            settling.set_result(None)
        self._settling.clear()

    def _deliver(self, deliveries: list[Delivery]) -> None:
        """One wake-up of the event loop a step, not a token: 60 streams cost one hop."""
        if deliveries and self._loop:
            with suppress(RuntimeError):  # the loop is closed, nobody is left to read
                self._loop.call_soon_threadsafe(_hand_over, deliveries)


def _hand_over(deliveries: list[Delivery]) -> None:
    for mailbox, item in deliveries:
        mailbox.put_nowait(item)
