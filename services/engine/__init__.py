"""Engines by name, imported only when built: nothing here may pull torch in by itself.

`local.py` takes requests in; `execution/` runs their steps on a thread of its own, as `scheduling/` plans them, and
`sampling/` takes tokens from the logits. `remote/` takes tokens from other servers.
"""

import gc
import inspect
import logging
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

logger = logging.getLogger(__name__)

# By the kind of model and the name of the engine. Others are named as `package.module:Class` in the settings.
ENGINES = {
    "chat": {
        "local": "services.engine.local:LocalEngine",
        "remote": "services.engine.remote.engine:RemoteEngine",
    },
    "embedding": {
        "local": "services.engine.embedding.embedder:LocalEmbedder",
        "remote": "services.engine.remote.embedder:RemoteEmbedder",
    },
    "reranker": {
        "local": "services.engine.embedding.reranker:LocalReranker",
        "remote": "services.engine.remote.embedder:RemoteReranker",
    },
}


def is_own(kind: str, engine: str) -> bool:
    """Whether it is one of this package's, which read model files of their own."""
    return engine in ENGINES[kind]


def reads_weights(engine: str) -> bool:
    """Whether it computes here. Of a model that others compute, only the tokenizer is read."""
    return engine == "local"


def engine_class(kind: str, engine: str) -> Any:
    """Imports it. Raises ValueError for a name that is neither of `ENGINES` nor of a class."""
    module, colon, name = ENGINES[kind].get(engine, engine).partition(":")
    if not colon:
        known = ", ".join(ENGINES[kind])
        raise ValueError(f"'{engine}' is no engine of kind {kind}: {known}, or package.module:Class")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the engine '{engine}' cannot be imported: {error}") from error


def build(
    kind: str, /, *, source: str, engine: str = "local", settings: Mapping[str, Any] | None = None, **options: Any
) -> Any:
    """Imports and constructs an engine; blocking (weights are read), so call it from a thread.

    `settings`: the server's general ones, of which an engine's `load` is given those that it has parameters for.
    `options`: the engine's own. Raises ValueError for an option that it has not.
    """
    found = engine_class(kind, engine)
    parameters = inspect.signature(found.load).parameters
    if unknown := options.keys() - parameters.keys():
        raise ValueError(f"the engine '{engine}' has no option '{min(unknown)}'")
    given = settings or {}
    if left := sorted(given.keys() - parameters.keys()):
        logger.warning(
            "the engine '%s' has no settings of these names, they are left aside: %s", engine, ", ".join(left)
        )
    return found.load(source=source, **{name: given[name] for name in given if name in parameters}, **options)


def warm_up(engines: Iterable[tuple[str, str]]) -> None:
    """Imports these engines (kind and name), and torch with them: seconds that the first request need not wait for.

    Garbage is not collected meanwhile: a quarter of that time went into looking through what had just been imported.
    Afterwards these objects are never looked through again, which would take a tenth of a second each time.
    """
    gc.disable()
    try:
        for kind, engine in engines:
            engine_class(kind, engine)
    finally:
        gc.freeze()
        gc.enable()
