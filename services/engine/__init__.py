"""Engines by name, imported only when built: nothing here may pull torch in by itself."""

from importlib import import_module
from typing import Any

ENGINES = {
    "local": "services.engine.local:LocalEngine",
    "embedding": "services.engine.embedder:LocalEmbedder",
}


def build(kind: str, /, **options: Any) -> Any:
    """Imports and constructs an engine; blocking (weights are read), so call it from a thread."""
    module, _, name = ENGINES[kind].partition(":")
    return getattr(import_module(module), name).load(**options)
