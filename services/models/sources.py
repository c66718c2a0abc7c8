"""Where the files of a configured model are, whether they can be served, and how its authors recommend to sample."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from services.engine import engine_class, is_own, reads_weights
from services.engine.base import SamplingDefaults
from services.engine.loading import model_files
from services.models import fetch
from services.models.config import ModelConfig
from services.models.default_models import DEFAULT_MODELS


def check(configs: Iterable[ModelConfig]) -> None:
    """Raises for a model that cannot be served, as far as its files tell; nothing is loaded."""
    for config in configs:
        if not is_own(config.kind, config.engine):
            engine_class(config.kind, config.engine)
        elif not _is_default(config.source):
            model_files.check(config.source, config.kind, weights=reads_weights(config.engine))


def locate(source: str, models_dir: Path) -> str:
    """What an engine opens; a default model is fetched if it is missing."""
    return str(fetch.fetch(source, models_dir)) if _is_default(source) else source


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
