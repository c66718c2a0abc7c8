"""Models of the hub's cache: which of them the settings allow to be pulled and can be served."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from services.engine.loading import model_files
from services.engine.loading.unusable import UnusableModel
from services.models.config import Kind
from services.models.hub_names import NAME, Stored


def is_allowed(name: str, patterns: Sequence[str]) -> bool:
    """By `owner/name`, or by `owner/name:VARIANT`."""
    return any(fnmatchcase(each.lower(), pattern.lower()) for pattern in patterns for each in _names(name))


def _names(name: str) -> set[str]:
    return {name, name.partition(":")[0]}


def gguf_file(name: str) -> Path | None:
    """Of `owner/name:VARIANT`, if it was pulled."""
    found = NAME.fullmatch(name)
    if not found or not found["variant"] or Path(name).exists():
        return None
    from services.models import hub  # its import takes a moment

    stored = hub.find(name)
    return stored.path if stored else None


def kind(model: Stored) -> Kind:
    return "embedding" if (model.path / "modules.json").exists() else "chat"


def check(model: Stored) -> None:
    """Raises UnusableModel."""
    model_files.check(str(model.path), kind(model))


def servable(patterns: Sequence[str]) -> Iterator[Stored]:
    """Those whose files are whole."""
    if not patterns:
        return
    from services.models import hub

    for model in hub.stored():
        if is_allowed(model.name, patterns):
            try:
                check(model)
            except UnusableModel:
                continue
            yield model
