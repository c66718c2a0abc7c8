"""Models of the hub by request of an administrator: pulled with their progress, and deleted."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Literal

from schemas.pull_schema import PullProgress
from services.engine.loading.unusable import UnusableModel
from services.errors import (
    Conflict,
    EngineFailed,
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    ServiceError,
    Unavailable,
)
from services.model_service import ModelManager
from services.models import pulled
from services.models.config import ModelConfig
from services.models.hub_names import Stored, parse

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parents[1]  # where `services` is found, installed or not
ERRORS: dict[str, type[ServiceError]] = {
    each.__name__: each for each in (InvalidRequest, ModelNotFound)
}  # of the process; others are Unavailable

Key = tuple[str, str | None]  # name, revision


class PullService:
    """`allowed`: patterns of the names that may be pulled and deleted. `configure` makes a model of a stored one."""

    def __init__(
        self,
        models: ModelManager,
        *,
        allowed: Sequence[str],
        configure: Callable[[Stored], ModelConfig],
        workers: int = 1,
    ) -> None:
        self._models = models
        self._allowed = allowed
        self._configure = configure
        self._workers = workers
        self._downloads: dict[Key, _Download] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # also of downloads that are being ended

    def add_stored(self) -> None:
        """Serves what was pulled before. Blocking."""
        for model in pulled.servable(self._allowed):
            self._models.add(self._configure(model))

    def interrupt(self) -> None:
        """Downloads go on from where they are the next time."""
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        self.interrupt()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def pull(self, name: str, revision: str | None = None) -> AsyncGenerator[PullProgress, None]:
        """Progress until the model can be used.

        Readers of one model share a download. It ends when the last of them leaves, and goes on from there later.
        """
        wanted = str(parse(name))
        self._check(wanted)
        async with aclosing(self._followed((wanted, revision))) as reports:
            async for report in reports:
                yield report
        yield await self._serve(wanted)

    async def whole(self, name: str, revision: str | None = None) -> PullProgress:
        """The last of them."""
        async with aclosing(self.pull(name, revision)) as reports:
            async for report in reports:
                last = report
        return last

    async def delete(self, name: str) -> None:
        """From the disk; it is not served any more."""
        wanted = str(parse(name))
        self._check(wanted)
        if any(name == wanted for name, _ in self._downloads):
            raise Conflict("The model is being pulled", param="model")
        model = await asyncio.to_thread(_find, wanted)
        if model is None:
            raise ModelNotFound(f"The model '{wanted}' is not on this disk", param="model")
        await self._models.remove(model.name)
        await asyncio.to_thread(_remove, model)
        logger.info("model %s deleted", model.name)

    def _check(self, name: str) -> None:
        if self._workers > 1:
            raise InvalidRequest(
                f"This server is {self._workers} processes, and the request reaches one of them: use `parley pull`"
            )
        if not pulled.is_allowed(name, self._allowed):
            raise Forbidden(
                "This model may not be pulled or deleted: PARLEY_SERVER__ALLOWED_PULLS has the names that may",
                param="model",
            )

    async def _followed(self, key: Key) -> AsyncGenerator[PullProgress, None]:
        download = self._downloads.get(key)
        if download is None or download.task.done():
            download = self._downloads[key] = _Download(*key)
            self._tasks.add(download.task)
            download.task.add_done_callback(self._tasks.discard)
        download.readers += 1
        try:
            async with aclosing(download.reports()) as reports:
                async for report in reports:
                    yield report
        finally:
            download.readers -= 1
            if not download.readers:
                download.task.cancel()  # the process is ended by the task
                if self._downloads.get(key) is download:
                    del self._downloads[key]

    async def _serve(self, name: str) -> PullProgress:
        model = await asyncio.to_thread(_find, name)
        if model is None:
            raise EngineFailed(f"{name} was pulled, and is not found in the hub's cache")
        try:
            await asyncio.to_thread(pulled.check, model)
        except UnusableModel as error:
            raise InvalidRequest(f"It was pulled, and cannot be served: {error}", param="model") from error
        self._models.add(self._configure(model))
        return _progress(model.name, "completed", completed=model.size, total=model.size)


class _Download:
    """The process of one download, and who follows it."""

    def __init__(self, name: str, revision: str | None) -> None:
        self._name = name
        self._latest: PullProgress | None = None
        self._news = asyncio.Event()  # replaced at each report
        self.readers = 0
        self.task = asyncio.create_task(self._run([name, *([revision] if revision else [])]))
        self.task.add_done_callback(self._end)

    async def reports(self) -> AsyncGenerator[PullProgress, None]:
        """The latest, and those that come. Raises the download's error."""
        seen = None
        while not self.task.done():
            news = self._news
            if self._latest is not None and self._latest is not seen:
                seen = self._latest
                yield seen
            else:
                await news.wait()
        if self.task.cancelled():
            raise Unavailable("The download was ended; it goes on from there the next time")
        self.task.result()

    async def _run(self, arguments: list[str]) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "services.models.pull_process", *arguments),
            cwd=HERE,
            env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            async for line in _lines(process):
                self._take(line)
            if await process.wait():
                raise EngineFailed(f"{self._name} could not be pulled; the server's log says why")
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())

    def _take(self, line: dict[str, Any]) -> None:
        if error := line.get("error"):
            if error in ERRORS:
                raise ERRORS[error](line["message"], param=line["param"])
            raise Unavailable(line["message"])
        self._latest = _progress(self._name, "downloading", **line)
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # its readers raise it
        self._wake()


async def _lines(process: asyncio.subprocess.Process) -> AsyncIterator[dict[str, Any]]:
    assert process.stdout
    async for line in process.stdout:
        yield json.loads(line)


def _progress(name: str, status: Literal["downloading", "completed"], *, completed: int, total: int) -> PullProgress:
    return PullProgress(id=name, object="model.pull", status=status, completed=completed, total=total)


def _find(name: str) -> Stored | None:
    from services.models import hub  # here: the import takes a moment

    return hub.find(name)


def _remove(model: Stored) -> None:
    from services.models import hub

    hub.remove(model)
