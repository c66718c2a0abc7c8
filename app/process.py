"""The process of the server: whether it listens, and how it ends if it cannot serve (one line and exit code 2)."""

import asyncio
import logging
import signal
import sys
from multiprocessing import parent_process
from typing import Any, NoReturn

from app.common import exits

STARTUP_FAILURE = 3  # uvicorn's: a worker that exits with it is not restarted


class Process:
    """Exits of the server's own process. uvicorn would print a traceback and exit with another code."""

    def __init__(self) -> None:
        self.has_failed = False

    async def refuse_to_start(self, line: str) -> NoReturn:
        """For errors before the socket is open. Does not return: the event loop ends."""
        exits.print_error(line)
        logging.getLogger("uvicorn.error").disabled = True
        self._exit_soon()
        await asyncio.Event().wait()
        raise AssertionError

    def shut_down(self, line: str) -> None:
        """For errors while requests are running: they end as on SIGTERM."""
        if not self.has_failed:
            self.has_failed = True
            exits.print_error(line)
            signal.raise_signal(signal.SIGTERM)

    def after_shutdown(self) -> None:
        """To be called at the end of the lifespan."""
        if self.has_failed:
            self._exit_soon()

    def _exit_soon(self) -> None:
        code = STARTUP_FAILURE if parent_process() else exits.CODE
        asyncio.get_running_loop().call_soon(sys.exit, code)


def uvicorn_server() -> Any | None:
    """The uvicorn server that runs the app, found by its signal handler; None if another server runs it."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return server if hasattr(server, "started") and hasattr(server, "config") else None


async def listening(server: Any | None) -> None:
    """Returns once the socket is open. No model is loaded before, since the address may be in use. uvicorn has no event
    for it, only a flag."""
    while server is not None and not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
