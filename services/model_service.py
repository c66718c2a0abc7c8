"""Loads and unloads the models."""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from services.engine import build
from services.engine.base import EngineStats, Job, Piece, Tokenizer
from services.engine.base import SamplingDefaults as SamplingDefaults
from services.errors import EngineFailed, InvalidRequest, ModelNotFound, ServiceError, Unavailable
from services.models.config import Kind, ModelCard, ModelConfig

logger = logging.getLogger(__name__)

MAX_NAME_CHARS = 200  # characters of a name in an error
NO_DEFAULTS = SamplingDefaults()


@dataclass(frozen=True, slots=True)
class Lease:
    id: str  # the model's own name
    name: str  # as the request named it
    engine: Any  # Engine or EmbeddingEngine, depending on the kind
    dialect: str | None = None
    sampling: SamplingDefaults = NO_DEFAULTS

    @property
    def fingerprint(self) -> str:
        """Changes with everything that the text of a seed depends on: the model, device and dtype."""
        return "fp_" + hashlib.sha256(f"{self.id}|{self.engine.device}|{self.engine.dtype}".encode()).hexdigest()[:10]

    @asynccontextmanager
    async def submitted(self, jobs: Iterable[Job]) -> AsyncIterator[list[AsyncGenerator[Piece, None]]]:
        """Submits the jobs and yields their pieces; if one job is rejected, none is left running."""
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(aclosing(await self.engine.submit(job))) for job in jobs]


OnFailure = Callable[[str, BaseException], None]  # model name, error


@dataclass(slots=True, eq=False)
class _Entry:
    config: ModelConfig
    engine: Any = None
    transition: asyncio.Task[None] | None = None  # the running load or unload
    is_loading: bool = False
    failure: BaseException | None = None  # of the last load
    on_failure: OnFailure | None = None  # None: failures are logged
    users: int = 0
    last_used: float = 0.0
    sampling: SamplingDefaults | None = None  # None: not read yet


class ModelManager:
    """Loads each model on its first use, in a thread, once for concurrent requests.

    `locate` turns a config's source into what an engine can open, and fetches a default model if it is missing; it runs
    in a thread with the load. `recommended` reads the sampling defaults of the model at a source; None if its files are
    not there yet.
    """

    def __init__(
        self,
        configs: Iterable[ModelConfig],
        *,
        aliases: Mapping[str, str] | None = None,
        locate: Callable[[str], str] = str,
        build: Callable[..., Any] = build,
        recommended: Callable[[str], SamplingDefaults | None] = lambda source: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries: dict[str, _Entry] = {}
        for config in configs:
            if config.name in self._entries:
                raise ValueError(f"two models are called '{config.name}': give one of them another id")
            self._entries[config.name] = _Entry(config)
        self._aliases = dict(aliases or {})
        self._locate = locate
        self._build = build
        self._recommended = recommended
        self._clock = clock
        self._created = int(time.time())
        self._reaper: asyncio.Task[None] | None = None
        self._stopped = False

    # --- looking up ---

    def cards(self) -> list[ModelCard]:
        return [self._card(entry) for entry in self._entries.values()]

    def card(self, name: str) -> ModelCard:
        if not name:  # an empty name must not mean the default model
            raise ModelNotFound("No model is named", param="model")
        return self._card(self._resolve(name, None))

    def check(self, name: str | None, kind: Kind) -> None:
        """Raises the errors of lease() without loading."""
        self._resolve(name, kind)

    def default(self, kind: Kind = "chat") -> ModelConfig:
        return self._resolve(None, kind).config

    async def sampling(self, name: str | None) -> SamplingDefaults:
        """Sampling defaults; does not load the model."""
        entry = self._resolve(name, None)
        if entry.sampling is None:
            entry.sampling = await asyncio.to_thread(self._sampling, entry.config)
        return entry.sampling or NO_DEFAULTS

    def engine(self, name: str) -> Any | None:
        """The engine if the model is loaded; does not load it."""
        return self._entries[name].engine

    def context_length(self, name: str) -> int | None:
        """Maximum tokens of prompt and answer, if the model is loaded; does not load it."""
        engine = self._resolve(name, None).engine
        return getattr(engine, "max_length", None)

    def is_loading(self) -> bool:
        return any(entry.is_loading for entry in self._entries.values())

    def has_failed(self) -> bool:
        """Whether the last load of a required model failed."""
        return any(entry.failure for entry in self._entries.values() if entry.config.required)

    def is_stalled(self) -> bool:
        return any(stats.stalled for stats in self.stats().values())

    def stats(self) -> dict[str, EngineStats]:
        return {name: entry.engine.stats() for name, entry in self._entries.items() if entry.engine is not None}

    # --- using ---

    @asynccontextmanager
    async def lease(self, name: str | None, kind: Kind | None = "chat") -> AsyncIterator[Lease]:
        """The model, which is not unloaded within the `with`. `kind` None: any."""
        entry = self._resolve(name, kind)
        engine = await self._loaded(entry)
        entry.users += 1
        try:
            config, sampling = entry.config, entry.sampling or NO_DEFAULTS
            yield Lease(config.name, name or config.name, engine, config.dialect, sampling)
        finally:
            entry.users -= 1
            entry.last_used = self._clock()

    async def get_model(self, name: str | None = None, kind: Kind = "chat") -> Any:
        return await self._loaded(self._resolve(name, kind))

    async def get_tokenizer(self, name: str | None = None, kind: Kind = "chat") -> Tokenizer:
        tokenizer: Tokenizer = (await self.get_model(name, kind)).tokenizer
        return tokenizer

    # --- lifecycle ---

    def start(
        self,
        preload: Sequence[str] = (),
        *,
        after: "asyncio.Future[None] | None" = None,
        on_failure: OnFailure | None = None,
    ) -> None:
        """Loads models once `after` is done; `on_failure` is called for each failure, instead of logging it."""
        for name in preload:
            entry = self._entries[name]
            entry.on_failure = on_failure
            self._begin(entry, partial(self._load_later, after=after), is_load=True)
        if ttls := [entry.config.idle_ttl for entry in self._entries.values() if entry.config.idle_ttl]:
            self._reaper = asyncio.create_task(self._reap_forever(min(ttls) / 4))

    async def stop(self) -> None:
        """Unloads everything; pending and later loads raise Unavailable."""
        self._stopped = True
        if self._reaper:
            self._reaper.cancel()
        for entry in self._entries.values():
            if entry.transition:
                await asyncio.wait([entry.transition])
            if entry.engine:
                await self._unload(entry)

    async def reap(self) -> None:
        """Unloads every model that was idle for its TTL."""
        for entry in self._entries.values():
            if self._is_idle(entry):
                logger.info("unloading model %s", entry.config.name)
                await self._begin(entry, self._unload)

    # --- internals ---

    def _resolve(self, name: str | None, kind: Kind | None) -> _Entry:
        resolved = self._aliases.get(name, name) if name else None
        if resolved and resolved not in self._entries and resolved != "default":
            resolved = self._aliases.get("*", resolved)
        if resolved is None or resolved == "default":
            return self._first(kind)
        entry = self._entries.get(resolved)
        if entry is None:
            raise ModelNotFound(f"The model '{str(name)[:MAX_NAME_CHARS]}' does not exist", param="model")
        if kind and entry.config.kind != kind:
            raise InvalidRequest(f"The model '{str(name)[:MAX_NAME_CHARS]}' is not a model for {kind}", param="model")
        return entry

    def _first(self, kind: Kind | None) -> _Entry:
        for entry in self._entries.values():
            if kind in (None, entry.config.kind):
                return entry
        raise ModelNotFound(f"No model for {kind} is configured", param="model")

    def _card(self, entry: _Entry) -> ModelCard:
        config = entry.config
        return ModelCard(config.name, self._created, config.kind, entry.engine is not None, config.dialect)

    def _is_idle(self, entry: _Entry) -> bool:
        ttl = entry.config.idle_ttl
        if entry.engine is None or entry.transition or entry.users or entry.config.pinned or ttl is None:
            return False
        return self._clock() - entry.last_used >= ttl

    async def _loaded(self, entry: _Entry) -> Any:
        while entry.engine is None or entry.transition is not None:
            if self._stopped:
                raise Unavailable("The server is shutting down")
            # shielded: a client that disconnects must not cancel the load for the others
            await asyncio.shield(entry.transition or self._begin(entry, self._load, is_load=True))
        entry.last_used = self._clock()
        return entry.engine

    def _begin(
        self, entry: _Entry, transition: Callable[[_Entry], Any], *, is_load: bool = False
    ) -> asyncio.Task[None]:
        async def run() -> None:
            try:
                await transition(entry)
            finally:
                entry.transition, entry.is_loading = None, False

        entry.is_loading = is_load
        entry.transition = asyncio.create_task(run())
        entry.transition.add_done_callback(_retrieve_exception)
        return entry.transition

    async def _load_later(self, entry: _Entry, after: "asyncio.Future[None] | None") -> None:
        if after:
            await asyncio.shield(after)
        if self._stopped:
            raise Unavailable("The server is shutting down")
        await self._load(entry)

    async def _load(self, entry: _Entry) -> None:
        config = entry.config
        started = self._clock()
        entry.failure = None
        try:
            engine = await asyncio.to_thread(self._open, config)
            entry.sampling = await asyncio.to_thread(self._sampling, config)  # the load may have fetched the files
        except Exception as error:
            self._fail(entry, error)
            if isinstance(error, ServiceError):
                raise
            raise EngineFailed(f"The model '{config.name}' could not be loaded; the server's log says why") from error
        engine.start()
        entry.engine, entry.on_failure = engine, None
        entry.last_used = self._clock()
        logger.info("model %s loaded in %.1f s", config.name, self._clock() - started)

    def _fail(self, entry: _Entry, error: Exception) -> None:
        entry.failure = error
        logger.debug("loading %s failed", entry.config.name, exc_info=True)
        on_failure, entry.on_failure = entry.on_failure, None
        if on_failure and not self._stopped:
            on_failure(entry.config.name, error)
        else:
            logger.error("model %s could not be loaded: %s", entry.config.name, reason(error))

    def _open(self, config: ModelConfig) -> Any:
        source = self._locate(config.source)
        settings, options = config.settings, config.options
        engine = self._build(config.kind, source=source, engine=config.engine, settings=settings, **options)
        if config.chat_template is not None:
            engine.tokenizer.chat_template = config.chat_template  # whatever the engine, ahead of its first request
        return engine

    def _sampling(self, config: ModelConfig) -> SamplingDefaults | None:
        return self._recommended(config.source) if config.sampling is None else config.sampling

    async def _unload(self, entry: _Entry) -> None:
        engine, entry.engine = entry.engine, None
        await engine.stop()

    async def _reap_forever(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            await self.reap()


def reason(error: BaseException) -> str:
    """One line for the operator; it may name files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else ""
    return line if isinstance(error, ServiceError) else f"{type(error).__name__}: {line}"


def _retrieve_exception(task: asyncio.Task[None]) -> None:
    """Marks the exception as handled: a failed load that nobody awaits was logged already."""
    if not task.cancelled():
        task.exception()
