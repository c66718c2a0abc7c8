"""Engines by name, imported only when built: nothing here may pull torch in by itself.

`local` takes requests in, and `worker` is its thread: one `stepper` step after the other. `scheduler`, `sequence`,
`slots` and `drafts` plan a step, without tensors. A `runner` calls the model: `building` picks the fastest that agrees
with it, of `paged/` (on a GPU), `batch_runner` (steps of the CPU, `compiled` or not) and `solo_runner`. What comes out
goes through `shaping`, `grammar` and `sampler`, and as text through `streamer`.
"""

import gc
from importlib import import_module
from typing import Any

ENGINES = {
    "local": "services.engine.local:LocalEngine",
    "embedding": "services.engine.embedding.embedder:LocalEmbedder",
    "reranker": "services.engine.embedding.reranker:LocalReranker",
}


def build(kind: str, /, **options: Any) -> Any:
    """Imports and constructs an engine; blocking (weights are read), so call it from a thread."""
    module, _, name = ENGINES[kind].partition(":")
    engine = getattr(import_module(module), name)
    threads = import_module("services.engine.cpu.threads")
    threads.fit_container()
    try:
        return engine.load(**options)
    finally:  # the thread that loads does not compute again
        threads.release_team()


def warm_up() -> None:
    """Imports what the engines import, torch above all: seconds that the first request need not wait for.

    Garbage is not looked for meanwhile: a quarter of that time went into looking through what had just been imported.
    Afterwards nobody looks there any more, which would be a tenth of a second each time.
    """
    gc.disable()
    try:
        for target in ENGINES.values():
            import_module(target.partition(":")[0])
    finally:
        gc.freeze()
        gc.enable()
