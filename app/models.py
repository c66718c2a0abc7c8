"""The models that the settings ask for, and where they are found."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.common.settings import ModelSettings, Settings
from services.engine import engine_class, is_own
from services.engine.loading import model_files
from services.model_service import ModelConfig, SamplingDefaults
from tools import fetch_models

DEFAULT_OF = {"chat": fetch_models.DEFAULT_CHAT, "embedding": fetch_models.DEFAULT_EMBEDDING}


def configs(settings: Settings) -> list[ModelConfig]:
    return [_config(each, settings) for each in _models(settings)]


def preloaded(settings: Settings) -> list[str]:
    return [_config(each, settings).name for each in _models(settings) if each.preload]


def check(settings: Settings) -> None:
    """Raises for a model that cannot be served, as far as its files tell: nothing is loaded."""
    for each in _models(settings):
        config = _config(each, settings)
        if not is_own(config.kind, config.engine):
            engine_class(config.kind, config.engine)
        elif not _is_fetched(config.source):
            model_files.check(config.source, config.kind)


def engines(settings: Settings) -> list[tuple[str, str]]:
    """Kinds and names of those that answer chats: what they import is imported ahead of the first request."""
    return sorted({(each.kind, each.engine) for each in _models(settings) if each.kind == "chat"})


def locate(source: str, models_dir: Path) -> str:
    """Where an engine finds a model; a default one is fetched if it never was."""
    if _is_fetched(source):
        return str(fetch_models.fetch(source, models_dir))
    return source


def _is_fetched(source: str) -> bool:
    return source in fetch_models.DEFAULT_MODELS and not Path(source).exists()


def recommended(
    source: str, models_dir: Path, read: Callable[[str], SamplingDefaults | None]
) -> SamplingDefaults | None:
    """How its authors recommend to sample a model; of a default one that is known before it is fetched."""
    default = fetch_models.DEFAULT_MODELS.get(source)
    if default is None or Path(source).exists():
        return read(source)
    found = read(str(models_dir / source)) or SamplingDefaults()
    return replace(default.sampling, **found.given)


def _models(settings: Settings) -> list[ModelSettings]:
    return [settings.model, *settings.models, settings.embedding]


def _config(model: ModelSettings, settings: Settings) -> ModelConfig:
    is_default = model.name == "default" and is_own(model.kind, model.engine)
    source = DEFAULT_OF[model.kind] if is_default else model.name
    return ModelConfig(
        name=model.id or _public_name(source),
        source=source,
        kind=model.kind,
        pinned=model.pinned,
        required=model is settings.model or model.preload,
        idle_ttl=model.ttl_s,
        dialect=model.dialect,
        sampling=None if model.sampling is None else SamplingDefaults(**model.sampling.model_dump()),
        engine=model.engine,
        settings=_general(model, settings),
        options=model.engine_options,
    )


def _general(model: ModelSettings, settings: Settings) -> dict[str, Any]:
    """What engines may have parameters for. One of another package is given only what is set."""
    own = is_own(model.kind, model.engine)
    given: dict[str, Any] = model.model_dump(include={"device", "dtype"}, exclude_unset=not own)
    if model.kind != "reranker" and own:
        given["compile_dir"] = str(settings.models_dir / "compiled") if settings.engine.compile else None
    if model.kind == "chat":
        given |= settings.engine.model_dump(exclude={"compile", "tensor_parallel_size"}, exclude_unset=not own)
    return given


def _public_name(source: str) -> str:
    """A file or folder is called by its own name; a hub's model keeps its owner."""
    path = Path(source)
    if path.suffix == ".gguf":
        return path.stem
    return path.resolve().name if path.is_dir() else source
