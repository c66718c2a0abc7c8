"""Graceful drain on SIGTERM, SIGINT and SIGHUP: new requests are rejected, running answers finish within a limit, and
the rest ends with an error event.

uvicorn closes its sockets as soon as it gets the signal, so probes and new requests would get no answer. The signal is
therefore held back until the drain is over. A second signal is passed on at once.
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

ERROR_EVENTS_S = 5.0  # for the error events to reach their readers


class Drain:
    """`begin` ends what is not waited for, `interrupt` everything that still runs; `is_busy`: whether there is work
    besides open requests."""

    def __init__(
        self,
        seconds: float,
        interrupt: Callable[[], Awaitable[None]],
        is_busy: Callable[[], bool],
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self.has_begun = False
        self._seconds = seconds
        self._interrupt = interrupt
        self._is_busy = is_busy
        self._begin = begin
        self._num_running = 0
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        self._num_running += 1
        try:
            yield
        finally:
            self._num_running -= 1

    def install(self) -> None:
        """Replaces the server's signal handlers; does nothing outside the main thread, as in tests."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        hang_up = getattr(signal, "SIGHUP", None)  # not on Windows
        if hang_up is not None and signal.getsignal(hang_up) is signal.SIG_DFL:  # nohup ignores it
            self._replace_handler(hang_up, signal.SIGTERM, loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._replace_handler(number, number, loop)

    def _replace_handler(
        self, number: signal.Signals, meaning: signal.Signals, loop: asyncio.AbstractEventLoop
    ) -> None:
        """The server is passed `meaning`: it does not handle SIGHUP."""
        server = signal.getsignal(meaning)

        def on_signal(_: int, frame: FrameType | None) -> None:
            if self.has_begun or not callable(server):
                signal.signal(number, server)
                _pass_on(server, meaning, frame)
            else:
                self.has_begun = True
                loop.call_soon_threadsafe(self._start, lambda: _pass_on(server, meaning, frame))

        signal.signal(number, on_signal)

    def _start(self, pass_on: Callable[[], None]) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(pass_on))

    async def _run(self, pass_on: Callable[[], None]) -> None:
        logger.info("draining: up to %g s for %d running requests", self._seconds, self._num_running)
        self._begin()
        try:
            if not await self._wait_until_idle(self._seconds):
                logger.warning("drain limit reached, ending %d requests", self._num_running)
                await self._interrupt()
                await self._wait_until_idle(ERROR_EVENTS_S)
        finally:
            pass_on()

    async def _wait_until_idle(self, seconds: float) -> bool:
        """Waits for all work to end; returns whether it did in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._num_running or self._is_busy():
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(0.05)
        return True


def _pass_on(handler: Any, signum: int, frame: FrameType | None) -> None:
    if callable(handler):
        handler(signum, frame)
    else:
        signal.raise_signal(signum)
