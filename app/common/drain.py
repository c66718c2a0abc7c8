"""SIGTERM, SIGINT, SIGHUP: nothing new, the running answers to their end within a limit, then what is left ends with
an error event.

uvicorn closes its sockets the moment it is told to stop, so probes and new requests would meet no answer at all. The
signal is held back here until the drain is over, and handed on then. A second signal is handed on at once.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

LAST_WORDS = 5.0  # seconds for the error events to reach their readers


class Drain:
    """`interrupt` ends everything that still runs; `is_busy` tells of work beyond open requests."""

    def __init__(self, seconds: float, interrupt: Callable[[], Awaitable[None]], is_busy: Callable[[], bool]) -> None:
        self.begun = False
        self._seconds = seconds
        self._interrupt = interrupt
        self._is_busy = is_busy
        self._answering = 0
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def answering(self) -> Iterator[None]:
        self._answering += 1
        try:
            yield
        finally:
            self._answering -= 1

    def install(self) -> None:
        """Takes the signals over from the server; does nothing off the main thread, as in tests."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
        if hang_up is not None and signal.getsignal(hang_up) is signal.SIG_DFL:  # under nohup it stays ignored
            self._take_over(hang_up, signal.SIGTERM, loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._take_over(number, number, loop)

    def _take_over(self, number: signal.Signals, meaning: signal.Signals, loop: asyncio.AbstractEventLoop) -> None:
        """The server is told `meaning`: it knows no SIGHUP."""
        server = signal.getsignal(meaning)

        def on_signal(_: int, frame: FrameType | None) -> None:
            if self.begun or not callable(server):
                signal.signal(number, server)
                _hand_on(server, meaning, frame)
            else:
                self.begun = True
                loop.call_soon_threadsafe(self._start, lambda: _hand_on(server, meaning, frame))

        signal.signal(number, on_signal)

    def _start(self, hand_on: Callable[[], None]) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(hand_on))

    async def _run(self, hand_on: Callable[[], None]) -> None:
        logger.info("draining: up to %g s for %d running requests", self._seconds, self._answering)
        try:
            if not await self._quiet(self._seconds):
                logger.warning("drain limit reached, ending %d requests", self._answering)
                await self._interrupt()
                await self._quiet(LAST_WORDS)
        finally:
            hand_on()

    async def _quiet(self, seconds: float) -> bool:
        """Whether all work ended in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._answering or self._is_busy():
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(0.05)
        return True


def _hand_on(handler: Any, signum: int, frame: FrameType | None) -> None:
    if callable(handler):
        handler(signum, frame)
    else:
        signal.raise_signal(signum)
