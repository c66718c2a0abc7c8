"""Model configurations from the settings."""

from pathlib import Path
from typing import Any

from app.common.settings import ModelSettings, Settings
from services.engine import is_own, reads_weights
from services.engine.base import SamplingDefaults, UpstreamAddress
from services.models.config import ModelConfig
from services.models.default_models import DEFAULT_OF
from services.models.hub_names import Stored
from services.models.pulled import gguf_file, kind


def configs(settings: Settings) -> list[ModelConfig]:
    return [_config(each, settings) for each in _models(settings)]


def pulled(stored: Stored, settings: Settings) -> ModelConfig:
    """A model of the hub's cache, with the chat model's device and dtype."""
    given = settings.model.model_dump(include={"device", "dtype", "ttl_s"}, exclude_unset=True)
    model = ModelSettings(name=str(stored.path), id=stored.name, kind=kind(stored), **given)
    return _config(model, settings)


def preloaded(settings: Settings) -> list[str]:
    return [_config(each, settings).name for each in _models(settings) if each.preload]


def engines(settings: Settings) -> list[tuple[str, str]]:
    """Kind and name of each chat engine: their modules are imported ahead of the first request."""
    return sorted({(each.kind, each.engine) for each in _models(settings) if each.kind == "chat"})


def _models(settings: Settings) -> list[ModelSettings]:
    return [settings.model, *settings.models, settings.embedding]


def _config(model: ModelSettings, settings: Settings) -> ModelConfig:
    is_default = model.name == "default" and is_own(model.kind, model.engine)
    source = DEFAULT_OF[model.kind] if is_default else model.name
    file = gguf_file(source) if reads_weights(model.engine) else None
    return ModelConfig(
        name=model.id or _public_name(source),
        source=str(file or source),
        kind=model.kind,
        pinned=model.pinned,
        required=model is settings.model or model.preload,
        idle_ttl=model.ttl_s,
        dialect=model.dialect,
        chat_template=model.chat_template.read_text("utf-8") if model.chat_template else None,
        sampling=None if model.sampling is None else SamplingDefaults(**model.sampling.model_dump()),
        engine=model.engine,
        adapters=model.adapters,
        settings=_engine_settings(model, settings),
        options={**_upstreams(model), **model.engine_options},
    )


def _upstreams(model: ModelSettings) -> dict[str, Any]:
    addresses = [
        UpstreamAddress(each.url, each.key.get_secret_value() if each.key else None, each.kind, each.model)
        for each in model.upstreams
    ]
    return {"upstreams": addresses} if addresses else {}


def _engine_settings(model: ModelSettings, settings: Settings) -> dict[str, Any]:
    """General settings that engines may have parameters for. Others than `local` get only those that are set."""
    own = reads_weights(model.engine)
    given: dict[str, Any] = model.model_dump(include={"device", "dtype"}, exclude_unset=not own)
    if own:
        given["compile_dir"] = str(settings.models_dir / "compiled") if settings.engine.compile else None
    if model.kind != "reranker" and (own or model.trust_remote_code):
        given["trust_remote_code"] = model.trust_remote_code
    if model.kind == "chat":
        given |= settings.engine.model_dump(exclude={"compile"}, exclude_unset=not own)
    if model.quantization is not None:
        given["quantization"] = model.quantization
    return given


def _public_name(source: str) -> str:
    """Files and folders go by their own name; a hub model keeps its owner."""
    path = Path(source)
    if path.suffix == ".gguf":
        return path.stem
    return path.resolve().name if path.is_dir() else source
