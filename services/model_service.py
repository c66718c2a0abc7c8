"""Loads and unloads the models."""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from services import callers
from services.engine import build
from services.engine.base import EngineStats, Job, Piece, TakesAdapters, Tokenizer
from services.engine.base import SamplingDefaults as SamplingDefaults
from services.engine.loading.progress import reported_to
from services.engine.loading.unusable import UnusableModel
from services.errors import Conflict, EngineFailed, InvalidRequest, ModelNotFound, ServiceError, Unavailable
from services.models.config import AdapterConfig, Kind, ModelCard, ModelConfig
from services.models.entry import NO_DEFAULTS, ModelChanges, ModelEntry, OnFailure, check_names, reconfigured

logger = logging.getLogger(__name__)

MAX_NAME_CHARS = 200  # characters of a name in an error
WATCH_S = 0.5  # between looks for engines that cannot compute any more


@dataclass(frozen=True, slots=True)
class Lease:
    id: str  # the model's own name
    name: str  # as the request named it
    engine: Any  # Engine or EmbeddingEngine, depending on the kind
    dialect: str | None = None
    sampling: SamplingDefaults = NO_DEFAULTS
    adapter: AdapterConfig | None = None

    @property
    def fingerprint(self) -> str:
        """Changes with everything that the text of a seed depends on: the model, adapter, device and dtype."""
        facts = [self.id, self.engine.device, self.engine.dtype, *([str(self.adapter)] if self.adapter else [])]
        return "fp_" + hashlib.sha256("|".join(facts).encode()).hexdigest()[:10]

    @asynccontextmanager
    async def submitted(self, jobs: Iterable[Job]) -> AsyncIterator[list[AsyncGenerator[Piece, None]]]:
        """Submits the jobs and yields their pieces; if one job is rejected, none is left running."""
        adapter, flex = self.adapter.name if self.adapter else None, callers.current().flex
        async with AsyncExitStack() as stack:
            jobs = [replace(job, adapter=adapter, priority=job.priority + flex, flex=job.flex or flex) for job in jobs]
            yield [await stack.enter_async_context(aclosing(await self.engine.submit(job))) for job in jobs]


@dataclass(frozen=True, slots=True)
class _Found:
    """What a name stands for."""

    entry: ModelEntry
    adapter: AdapterConfig | None = None  # None: the model as it is


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
        self._created = int(time.time())
        self._entries, _ = reconfigured({}, list(configs), self._created)
        self._retired: set[ModelEntry] = set()
        self._aliases = dict(aliases or {})
        self._locate = locate
        self._build = build
        self._recommended = recommended
        self._clock = clock
        self._reaper: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._stopped = False

    # --- looking up ---

    def cards(self) -> list[ModelCard]:
        """Those that the caller may use."""
        caller = callers.current()
        listed = [card for entry in self._entries.values() for card in entry.cards(self._created)]
        return [card for card in listed if caller.may_use(card.id)]

    def card(self, name: str) -> ModelCard:
        if not name:  # an empty name must not mean the default model
            raise ModelNotFound("No model is named", param="model")
        found = self._find(name, None)
        wanted = found.adapter.name if found.adapter else found.entry.config.name
        return next(card for card in found.entry.cards(self._created) if card.id == wanted)

    def check(self, name: str | None, kind: Kind) -> None:
        """Raises the errors of lease() without loading."""
        self._resolve(name, kind)

    def default(self, kind: Kind = "chat") -> ModelConfig:
        return self._resolve(None, kind).config

    def config(self, name: str) -> ModelConfig:
        return self._resolve(name, None).config

    async def sampling(self, name: str | None) -> SamplingDefaults:
        """Sampling defaults; does not load the model."""
        entry = self._resolve(name, None)
        if entry.sampling is None:
            entry.sampling = await asyncio.to_thread(self._sampling, entry.config)
        return entry.sampling or NO_DEFAULTS

    def engine(self, name: str) -> Any | None:
        """The engine if the model is loaded; does not load it."""
        found = self._named(name)
        return found.entry.engine if found else None

    def context_length(self, name: str) -> int | None:
        """Maximum tokens of prompt and answer, if the model is loaded; does not load it."""
        engine = self._resolve(name, None).engine
        return getattr(engine, "max_length", None)

    def is_loading(self) -> bool:
        """Whether a required model is being loaded. One that loads at its first use keeps nobody else waiting."""
        return any(entry.is_loading for entry in self._entries.values() if entry.config.required)

    def has_failed(self) -> bool:
        """Whether the last load of a required model failed."""
        return any(entry.failure for entry in self._entries.values() if entry.config.required)

    def is_stalled(self) -> bool:
        return any(stats.stalled for stats in self.stats().values())

    def is_ready(self) -> bool:
        return not (self.is_loading() or self.has_failed() or self.is_stalled())

    def num_running(self) -> int:
        """Requests that the engines compute."""
        return sum(stats.running for stats in self.stats().values())

    def is_busy(self) -> bool:
        """Whether requests wait for an engine, other than those that wait for what capacity is left."""
        return any(stats.waiting > stats.waiting_flex for stats in self.stats().values())

    def stats(self) -> dict[str, EngineStats]:
        return {name: entry.engine.stats() for name, entry in self._entries.items() if entry.engine is not None}

    # --- using ---

    @asynccontextmanager
    async def lease(self, name: str | None, kind: Kind | None = "chat") -> AsyncIterator[Lease]:
        """The model, which is not unloaded within the `with`. `kind` None: any."""
        found = self._find(name, kind)
        entry = found.entry
        engine = await self._loaded(entry)
        entry.users += 1
        try:
            config, sampling = entry.config, entry.sampling or NO_DEFAULTS
            yield Lease(config.name, name or config.name, engine, config.dialect, sampling, found.adapter)
        finally:
            entry.users -= 1
            entry.last_used = self._clock()
            if entry.is_retired:
                self._unload_retired(entry)

    async def get_model(self, name: str | None = None, kind: Kind = "chat") -> Any:
        return await self._loaded(self._resolve(name, kind))

    async def get_tokenizer(self, name: str | None = None, kind: Kind = "chat") -> Tokenizer:
        tokenizer: Tokenizer = (await self.get_model(name, kind)).tokenizer
        return tokenizer

    # --- loading and unloading by request ---

    async def load(self, name: str) -> None:
        """Until it is loaded. Raises what the load raises."""
        await self._loaded(self._find(name, None).entry)

    async def unload(self, name: str) -> None:
        """Its next request loads it again. Raises Conflict while it answers."""
        entry = self._find(name, None).entry
        if entry.users or entry.is_loading:
            what = "is being loaded" if entry.is_loading else "is answering"
            raise Conflict(f"The model '{entry.config.name}' {what}", param="model")
        if entry.transition:
            await asyncio.shield(entry.transition)
        elif entry.engine is not None:
            logger.info("unloading model %s on request", entry.config.name)
            await asyncio.shield(self._begin(entry, self._unload))

    # --- models that come and go ---

    def add(self, config: ModelConfig) -> None:
        """A model of the settings keeps its name; one that was added before is changed at its next load."""
        entry = self._entries.get(config.name)
        if entry is None:
            self._entries[config.name] = ModelEntry(config, is_added=True)
        elif entry.is_added:
            entry.config = config

    async def remove(self, name: str) -> None:
        """Raises Conflict while it answers, and for a model of the settings."""
        entry = self._entries.get(name)
        if entry is None:
            return
        if not entry.is_added:
            raise Conflict(f"The model '{name}' is one of the server's settings", param="model")
        await self.unload(name)
        del self._entries[name]

    # --- the settings, read again ---

    check_names = staticmethod(check_names)

    def reconfigure(
        self, configs: Sequence[ModelConfig], aliases: Mapping[str, str], preload: Sequence[str] = ()
    ) -> ModelChanges:
        """The models of the settings from now on. Answers that run are made to their end by the model they began with.
        Raises what `check_names` raises, and changes nothing then."""
        before = self._entries
        self._entries, changes = reconfigured(before, configs, self._created)
        self._aliases = dict(aliases)
        for name, entry in before.items():
            if self._entries.get(name) is not entry:
                self._retire(entry)
        for name in preload:
            if name in changes.new:
                self._begin(self._entries[name], self._load, is_load=True)
        self._restart_reaper()
        return changes

    def _retire(self, entry: ModelEntry) -> None:
        entry.is_retired = True
        self._retired.add(entry)
        if entry.transition:
            entry.transition.add_done_callback(lambda task: self._unload_retired(entry))
        else:
            self._unload_retired(entry)

    def _unload_retired(self, entry: ModelEntry) -> None:
        """Unless somebody uses it. One that is loaded by a request which came before comes here again after it."""
        if entry.users or entry.transition or self._stopped:
            return
        if entry.engine is None:
            self._retired.discard(entry)
            return
        logger.info("unloading model %s, which the settings have changed", entry.config.name)
        self._retired.add(entry)
        self._begin(entry, self._unload).add_done_callback(lambda task: self._unload_retired(entry))

    # --- adapters ---

    async def load_adapter(self, name: str, folder: str, model: str | None = None, *, in_place: bool = False) -> None:
        """Raises InvalidRequest for a name that is taken, and UnusableModel for a folder that cannot be applied."""
        entry = self._resolve(model, "chat")
        if self._named(name) and name not in entry.adapters:
            raise InvalidRequest("'%s' is the name of another model", "lora_name")
        if name in entry.adapters and not in_place:
            raise InvalidRequest("'%s' is loaded already: '%s' replaces it", "lora_name", "load_inplace")
        async with self.lease(entry.config.name) as lease:
            if not isinstance(lease.engine, TakesAdapters):
                raise InvalidRequest("'%s': its engine takes no LoRA adapters", "model")
            await lease.engine.load_adapter(name, folder)
            entry.adapters[name] = AdapterConfig(name, folder, int(time.time()))

    def unload_adapter(self, name: str) -> bool:
        """Whether there was one. Answers that are being made with it are made to their end."""
        for entry in self._entries.values():
            if entry.adapters.pop(name, None):
                if isinstance(entry.engine, TakesAdapters):
                    entry.engine.unload_adapter(name)
                return True
        return False

    async def _load_adapters(self, entry: ModelEntry, engine: Any) -> None:
        """A model is served without an adapter that was loaded by a request and is no longer there."""
        for adapter in list(entry.adapters.values()):
            try:
                if not isinstance(engine, TakesAdapters):
                    raise UnusableModel(f"the engine '{entry.config.engine}' takes no LoRA adapters")
                await engine.load_adapter(adapter.name, adapter.folder)
                if adapter.name not in entry.adapters:  # it was unloaded meanwhile
                    engine.unload_adapter(adapter.name)
            except UnusableModel as error:
                if adapter.configured:
                    raise UnusableModel(f"ADAPTERS['{adapter.name}']: {error}") from error
                logger.error("adapter %s is no longer served: %s", adapter.name, error)
                entry.adapters.pop(adapter.name, None)

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
        self._watcher = asyncio.create_task(self._watch_forever())
        self._restart_reaper()

    def _restart_reaper(self) -> None:
        if self._reaper:
            self._reaper.cancel()
            self._reaper = None
        if ttls := [entry.config.idle_ttl for entry in self._entries.values() if entry.config.idle_ttl]:
            self._reaper = asyncio.create_task(self._reap_forever(min(ttls) / 4))

    async def stop(self) -> None:
        """Unloads everything; pending and later loads raise Unavailable."""
        self._stopped = True
        for task in (self._reaper, self._watcher):
            if task:
                task.cancel()
        for entry in (*self._entries.values(), *self._retired):
            if entry.transition:
                await asyncio.wait([entry.transition])
            if entry.engine:
                await self._unload(entry)

    async def reap(self) -> None:
        """Unloads every model that was idle for its TTL."""
        for entry in list(self._entries.values()):
            if self._is_idle(entry):
                logger.info("unloading model %s", entry.config.name)
                await self._begin(entry, self._unload)

    async def reload_lost(self) -> None:
        """Loads every model again whose engine cannot compute any more; requests wait for it meanwhile."""
        for entry in self._entries.values():
            self._reload_if_lost(entry)

    # --- internals ---

    def _resolve(self, name: str | None, kind: Kind | None) -> ModelEntry:
        return self._find(name, kind).entry

    def _find(self, name: str | None, kind: Kind | None) -> _Found:
        resolved = self._with_kind(self._aliases.get(name, name)) if name else None
        if resolved and not self._named(resolved) and resolved != "default":
            resolved = self._aliases.get("*", resolved)
        if resolved is None or resolved == "default":
            return _Found(self._first(kind))
        found = self._named(resolved)
        if found is None or not callers.current().may_use(resolved):
            raise ModelNotFound(f"The model '{str(name)[:MAX_NAME_CHARS]}' does not exist", param="model")
        if kind and found.entry.config.kind != kind:
            raise InvalidRequest(f"The model '{str(name)[:MAX_NAME_CHARS]}' is not a model for {kind}", param="model")
        return found

    def _named(self, name: str) -> _Found | None:
        """By its own name."""
        if entry := self._entries.get(name):
            return _Found(entry)
        found = (_Found(entry, entry.adapters[name]) for entry in self._entries.values() if name in entry.adapters)
        return next(found, None)

    def _with_kind(self, name: str) -> str:
        """A repository's name may stand for the one kind of its GGUF files that is served."""
        kinds = [each for each in self._entries if each.partition(":")[0] == name]
        return kinds[0] if len(kinds) == 1 and name not in self._entries else name

    def _first(self, kind: Kind | None) -> ModelEntry:
        caller = callers.current()
        for name, entry in self._entries.items():
            if kind in (None, entry.config.kind) and caller.may_use(name):
                return entry
        raise ModelNotFound(f"No model for {kind} is configured", param="model")

    def _is_idle(self, entry: ModelEntry) -> bool:
        ttl = entry.config.idle_ttl
        if entry.engine is None or entry.transition or entry.users or entry.config.pinned or ttl is None:
            return False
        return self._clock() - entry.last_used >= ttl

    def _reload_if_lost(self, entry: ModelEntry) -> None:
        if entry.engine is not None and entry.transition is None and entry.engine.stats().lost:
            logger.warning("loading model %s again", entry.config.name)
            self._begin(entry, self._reload, is_load=True)

    async def _loaded(self, entry: ModelEntry) -> Any:
        self._reload_if_lost(entry)
        entry.users += 1  # who waits, too: what leaves the settings is not unloaded just before it is used
        try:
            while entry.engine is None or entry.transition is not None:
                if self._stopped:
                    raise Unavailable("The server is shutting down")
                # shielded: a client that disconnects must not cancel the load for the others
                await asyncio.shield(entry.transition or self._begin(entry, self._load, is_load=True))
        finally:
            entry.users -= 1
            if entry.is_retired:
                asyncio.get_running_loop().call_soon(self._unload_retired, entry)
        entry.last_used = self._clock()
        return entry.engine

    def _begin(
        self, entry: ModelEntry, transition: Callable[[ModelEntry], Any], *, is_load: bool = False
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

    async def _load_later(self, entry: ModelEntry, after: "asyncio.Future[None] | None") -> None:
        if after:
            await asyncio.shield(after)
        if self._stopped:
            raise Unavailable("The server is shutting down")
        await self._load(entry)

    async def _load(self, entry: ModelEntry) -> None:
        config = entry.config
        started = self._clock()
        entry.failure = entry.progress = None
        try:
            engine = await asyncio.to_thread(self._open, entry)
            entry.sampling = await asyncio.to_thread(self._sampling, config)  # the load may have fetched the files
            engine.start()
            await self._prepare(entry, engine)
        except Exception as error:
            self._fail(entry, error)
            if isinstance(error, ServiceError):
                raise
            raise EngineFailed(f"The model '{config.name}' could not be loaded; the server's log says why") from error
        entry.engine, entry.on_failure = engine, None
        entry.last_used = self._clock()
        logger.info("model %s loaded in %.1f s", config.name, self._clock() - started)

    async def _prepare(self, entry: ModelEntry, engine: Any) -> None:
        try:
            await self._load_adapters(entry, engine)
        except BaseException:
            await engine.stop()
            raise

    def _fail(self, entry: ModelEntry, error: Exception) -> None:
        entry.failure = error
        logger.debug("loading %s failed", entry.config.name, exc_info=True)
        on_failure, entry.on_failure = entry.on_failure, None
        if on_failure and not self._stopped:
            on_failure(entry.config.name, error)
        else:
            logger.error("model %s could not be loaded: %s", entry.config.name, reason(error))

    def _open(self, entry: ModelEntry) -> Any:
        config, settings, options = entry.config, entry.config.settings, entry.config.options
        with reported_to(partial(setattr, entry, "progress")):
            source = self._locate(config.source)
            engine = self._build(config.kind, source=source, engine=config.engine, settings=settings, **options)
        if config.chat_template is not None:
            engine.tokenizer.chat_template = config.chat_template  # whatever the engine, ahead of its first request
        return engine

    def _sampling(self, config: ModelConfig) -> SamplingDefaults | None:
        return self._recommended(config.source) if config.sampling is None else config.sampling

    async def _unload(self, entry: ModelEntry) -> None:
        engine, entry.engine = entry.engine, None
        await engine.stop()

    async def _reload(self, entry: ModelEntry) -> None:
        await self._unload(entry)
        await self._load_later(entry, after=None)

    async def _watch_forever(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            await self.reload_lost()

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
