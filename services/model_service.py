"""Which models there are, and the one place that loads and frees them."""

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

SHOWN = 200  # characters of a name in an error
NOTHING_RECOMMENDED = SamplingDefaults()


@dataclass(frozen=True, slots=True)
class Lease:
    id: str  # the model's own name
    name: str  # as the request called it
    engine: Any  # Engine or EmbeddingEngine, by the kind that was asked for
    dialect: str | None = None
    sampling: SamplingDefaults = NOTHING_RECOMMENDED

    @property
    def fingerprint(self) -> str:
        """Changes with what a seed's text depends on: the model and how it is run."""
        return "fp_" + hashlib.sha256(f"{self.id}|{self.engine.device}|{self.engine.dtype}".encode()).hexdigest()[:10]

    @asynccontextmanager
    async def answering(self, jobs: Iterable[Job]) -> AsyncIterator[list[AsyncGenerator[Piece, None]]]:
        """The pieces of each; where one job is refused, none is left running."""
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(aclosing(await self.engine.submit(job))) for job in jobs]


Failed = Callable[[str, BaseException], None]  # a model's name, and why it could not be loaded


@dataclass(slots=True, eq=False)
class _Entry:
    config: ModelConfig
    engine: Any = None
    transition: asyncio.Task[None] | None = None  # the load or unload under way
    is_loading: bool = False
    failure: BaseException | None = None  # of the latest load
    report: Failed | None = None  # who hears of a failure; None: the log
    users: int = 0
    last_used: float = 0.0
    sampling: SamplingDefaults | None = None  # None: not known yet


class ModelManager:
    """Loads each model on its first use, off the event loop, once however many ask together.

    `locate` turns a config's source into what an engine can open (fetching a default model if need be); it and the
    load run in a worker thread. `recommended` reads what the authors of the model at a source say of sampling; None
    where it is not there yet.
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

    # --- asking ---

    def cards(self) -> list[ModelCard]:
        return [self._card(entry) for entry in self._entries.values()]

    def card(self, name: str) -> ModelCard:
        if not name:  # elsewhere that means the default one
            raise ModelNotFound("No model is named", param="model")
        return self._card(self._resolve(name, None))

    def check(self, name: str | None, kind: Kind) -> None:
        """Raises what a lease would, without loading anything."""
        self._resolve(name, kind)

    def default(self, kind: Kind = "chat") -> ModelConfig:
        return self._resolve(None, kind).config

    async def sampling(self, name: str | None) -> SamplingDefaults:
        """What holds where a request names nothing. Asking does not load the model."""
        entry = self._resolve(name, None)
        if entry.sampling is None:
            entry.sampling = await asyncio.to_thread(self._sampling, entry.config)
        return entry.sampling or NOTHING_RECOMMENDED

    def engine(self, name: str) -> Any | None:
        """The loaded engine of a model, or None: asking does not load it."""
        return self._entries[name].engine

    def context_length(self, name: str) -> int | None:
        """Tokens of prompt and answer together, once the model is loaded: asking does not load it."""
        engine = self._resolve(name, None).engine
        return getattr(engine, "max_length", None)

    def is_loading(self) -> bool:
        return any(entry.is_loading for entry in self._entries.values())

    def has_failed(self) -> bool:
        """Whether a model that is to be there could not be loaded when it was last tried."""
        return any(entry.failure for entry in self._entries.values() if entry.config.required)

    def is_stalled(self) -> bool:
        return any(stats.stalled for stats in self.stats().values())

    def stats(self) -> dict[str, EngineStats]:
        return {name: entry.engine.stats() for name, entry in self._entries.items() if entry.engine is not None}

    # --- using ---

    @asynccontextmanager
    async def lease(self, name: str | None, kind: Kind | None = "chat") -> AsyncIterator[Lease]:
        """The model for the time of a `with`: it is not freed under its user. `kind` None: whichever it is."""
        entry = self._resolve(name, kind)
        engine = await self._loaded(entry)
        entry.users += 1
        try:
            config, sampling = entry.config, entry.sampling or NOTHING_RECOMMENDED
            yield Lease(config.name, name or config.name, engine, config.dialect, sampling)
        finally:
            entry.users -= 1
            entry.last_used = self._clock()

    async def get_model(self, name: str | None = None, kind: Kind = "chat") -> Any:
        return await self._loaded(self._resolve(name, kind))

    async def get_tokenizer(self, name: str | None = None, kind: Kind = "chat") -> Tokenizer:
        tokenizer: Tokenizer = (await self.get_model(name, kind)).tokenizer
        return tokenizer

    # --- life ---

    def start(
        self,
        preload: Sequence[str] = (),
        *,
        after: "asyncio.Future[None] | None" = None,
        failed: Failed | None = None,
    ) -> None:
        """Begins to load these, once `after` is done; `failed` hears of each that cannot be, instead of the log."""
        for name in preload:
            entry = self._entries[name]
            entry.report = failed
            self._begin(entry, partial(self._load_later, after=after), is_load=True)
        if ttls := [entry.config.idle_ttl for entry in self._entries.values() if entry.config.idle_ttl]:
            self._reaper = asyncio.create_task(self._reap_forever(min(ttls) / 4))

    async def stop(self) -> None:
        """Frees everything; nothing is loaded any more, whoever still waits for it."""
        self._stopped = True
        if self._reaper:
            self._reaper.cancel()
        for entry in self._entries.values():
            if entry.transition:
                await asyncio.wait([entry.transition])
            if entry.engine:
                await self._unload(entry)

    async def reap(self) -> None:
        """Frees every model that nobody has used for its TTL."""
        for entry in self._entries.values():
            if self._is_idle(entry):
                logger.info("freeing model %s", entry.config.name)
                await self._begin(entry, self._unload)

    # --- inside ---

    def _resolve(self, name: str | None, kind: Kind | None) -> _Entry:
        wanted = self._aliases.get(name, name) if name else None
        if wanted and wanted not in self._entries and wanted != "default":
            wanted = self._aliases.get("*", wanted)
        if wanted is None or wanted == "default":
            return self._first(kind)
        entry = self._entries.get(wanted)
        if entry is None:
            raise ModelNotFound(f"The model '{str(name)[:SHOWN]}' does not exist", param="model")
        if kind and entry.config.kind != kind:
            raise InvalidRequest(f"The model '{str(name)[:SHOWN]}' is not a model for {kind}", param="model")
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
            # shielded: a client that leaves does not take the load away from the others
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
        entry.transition.add_done_callback(_retrieve)
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
            entry.sampling = await asyncio.to_thread(self._sampling, config)  # the files may be new
        except Exception as error:
            self._fail(entry, error)
            if isinstance(error, ServiceError):
                raise
            raise EngineFailed(f"The model '{config.name}' could not be loaded; the server's log says why") from error
        engine.start()
        entry.engine, entry.report = engine, None
        entry.last_used = self._clock()
        logger.info("model %s loaded in %.1f s", config.name, self._clock() - started)

    def _fail(self, entry: _Entry, error: Exception) -> None:
        entry.failure = error
        logger.debug("loading %s failed", entry.config.name, exc_info=True)
        report, entry.report = entry.report, None
        if report and not self._stopped:
            report(entry.config.name, error)
        else:
            logger.error("model %s could not be loaded: %s", entry.config.name, reason(error))

    def _open(self, config: ModelConfig) -> Any:
        source = self._locate(config.source)
        return self._build(config.kind, source=source, engine=config.engine, settings=config.settings, **config.options)

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
    """In one line, for whoever runs the server: it may name files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else ""
    return said if isinstance(error, ServiceError) else f"{type(error).__name__}: {said}"


def _retrieve(task: asyncio.Task[None]) -> None:
    """A failed load that nobody waits for any more is not an unhandled exception: it was logged."""
    if not task.cancelled():
        task.exception()
