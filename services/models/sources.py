"""Where the files of a configured model are, whether they can be served, and how its authors recommend to sample."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from services.engine import engine_class, is_own, reads_weights
from services.engine.base import SamplingDefaults
from services.engine.loading import model_files
from services.engine.loading.unusable import UnusableModel
from services.engine.lora.adapter_config import read_adapter_config
from services.models import fetch, footprint
from services.models.config import ModelConfig
from services.models.default_models import DEFAULT_MODELS
from services.models.footprint import Footprint


def check(configs: Iterable[ModelConfig]) -> None:
    """Raises for a model that cannot be served, as far as its files tell; nothing is loaded."""
    for config in configs:
        if not is_own(config.kind, config.engine):
            engine_class(config.kind, config.engine)
        elif not _is_default(config.source):
            model_files.check(config.source, config.kind, weights=reads_weights(config.engine))
        for name, folder in config.adapters.items():
            _check_adapter(name, folder)


def _check_adapter(name: str, folder: str) -> None:
    try:
        read_adapter_config(Path(folder))
    except UnusableModel as error:
        raise UnusableModel(f"ADAPTERS['{name}']: {error}") from None


def locate(source: str, models_dir: Path) -> str:
    """What an engine opens; a default model is fetched if it is missing."""
    return str(fetch.fetch(source, models_dir)) if _is_default(source) else source


def stored(source: str, models_dir: Path) -> Path | None:
    """Where its files are on this disk; None: they are not there yet."""
    paths = [Path(source), *([models_dir / source] if source in DEFAULT_MODELS else [])]
    if found := next((path for path in paths if path.exists()), None):
        return found
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(source, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def measure(config: ModelConfig, models_dir: Path) -> Footprint | None:
    """None: its files are not here, or another server computes it."""
    path = stored(config.source, models_dir) if reads_weights(config.engine) else None
    return footprint.of(path) if path else None


def recommended_sampling(
    source: str, models_dir: Path, read: Callable[[str], SamplingDefaults | None]
) -> SamplingDefaults | None:
    """The sampling parameters that a model's authors recommend; of a default model known before it is fetched."""
    default = DEFAULT_MODELS.get(source)
    if default is None or Path(source).exists():
        return read(source)
    found = read(str(models_dir / source)) or SamplingDefaults()
    return replace(default.sampling, **found.given)


def _is_default(source: str) -> bool:
    return source in DEFAULT_MODELS and not Path(source).exists()
