"""What is known of each model: its configuration, its engine while it is loaded, and what becomes of them when the
settings are read again."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from services.engine.base import SamplingDefaults
from services.engine.loading.progress import LoadProgress
from services.models.config import AdapterConfig, ModelCard, ModelConfig, ModelState

NO_DEFAULTS = SamplingDefaults()

OnFailure = Callable[[str, BaseException], None]  # model name, error


@dataclass(slots=True, eq=False)
class ModelEntry:
    config: ModelConfig
    is_added: bool = False  # not of the settings
    adapters: dict[str, AdapterConfig] = field(default_factory=dict)
    engine: Any = None
    transition: asyncio.Task[None] | None = None  # the running load or unload
    is_loading: bool = False
    progress: LoadProgress | None = None  # of the last load
    failure: BaseException | None = None  # of the last load
    on_failure: OnFailure | None = None  # None: failures are logged
    users: int = 0
    last_used: float = 0.0
    sampling: SamplingDefaults | None = None  # None: not read yet
    is_retired: bool = False  # no longer of the settings: unloaded once nobody uses it

    def card(self, created: int) -> ModelCard:
        found = self.progress if self.is_loading else None
        return ModelCard(self.config.name, created, self.config.kind, self.state, self.config.dialect, progress=found)

    @property
    def state(self) -> ModelState:
        if self.is_loading:
            return "loading"
        if self.engine is not None:
            return "loaded"
        return "failed" if self.failure else "unloaded"

    def cards(self, created: int) -> list[ModelCard]:
        """Of the model and of its adapters."""
        card = self.card(created)
        adapters = self.adapters.values()
        return [card, *(replace(card, id=each.name, created=each.created, parent=card.id) for each in adapters)]


@dataclass(frozen=True, slots=True)
class ModelChanges:
    """Names of models."""

    added: list[str]
    changed: list[str]
    removed: list[str]

    @property
    def new(self) -> list[str]:
        """Those whose entry is another than before."""
        return [*self.added, *self.changed]


def check_names(configs: Iterable[ModelConfig]) -> None:
    """Raises ValueError for a name that two models or adapters have."""
    names: set[str] = set()
    for name in (each for config in configs for each in (config.name, *config.adapters)):
        if name in names:
            raise ValueError(f"two models are called '{name}': give one of them another id")
        names.add(name)


def reconfigured(
    before: Mapping[str, ModelEntry], configs: Sequence[ModelConfig], created: int
) -> tuple[dict[str, ModelEntry], ModelChanges]:
    """By name: the entries of models that have not changed and of those that were added, and new ones. Raises what
    `check_names` raises. `created`: of the adapters, in seconds of the epoch."""
    check_names(configs)
    kept = {
        each.name: before[each.name]
        for each in configs
        if each.name in before and not before[each.name].is_added and before[each.name].config == each
    }
    entries = {each.name: kept.get(each.name) or _configured(each, created) for each in configs}
    entries |= {name: entry for name, entry in before.items() if entry.is_added and name not in entries}
    new = [each.name for each in configs if each.name not in kept]
    return entries, ModelChanges(
        added=[name for name in new if name not in before],
        changed=[name for name in new if name in before],
        removed=[name for name in before if name not in entries],
    )


def _configured(config: ModelConfig, created: int) -> ModelEntry:
    adapters = {name: AdapterConfig(name, folder, created, configured=True) for name, folder in config.adapters.items()}
    return ModelEntry(config, adapters=adapters)
