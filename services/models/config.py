"""What is served: the configuration of a model, and its card."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from services.engine.base import SamplingDefaults
from services.engine.loading.progress import LoadProgress

Kind = Literal["chat", "embedding", "reranker"]
ModelState = Literal["unloaded", "loading", "loaded", "failed"]  # failed: its last load


@dataclass(frozen=True, slots=True)
class ModelConfig:
    name: str  # the name that requests use
    source: str  # folder, hub name, GGUF file, or the name of a default model
    kind: Kind = "chat"
    pinned: bool = False  # never unloaded
    required: bool = False  # without it the service is not ready
    idle_ttl: float | None = None  # idle seconds until it is unloaded; None: never
    dialect: str | None = None  # format of tool calls; None: detected in the chat template
    chat_template: str | None = None  # in place of the model's own
    sampling: SamplingDefaults | None = None  # defaults; None: those of generation_config.json
    engine: str = "local"  # a name of `services.engine.ENGINES`, or package.module:Class
    adapters: Mapping[str, str] = field(default_factory=dict)  # LoRA: the names that requests use, and the folders
    settings: Mapping[str, Any] = field(default_factory=dict)  # an engine gets those that it has parameters for
    options: Mapping[str, Any] = field(default_factory=dict)  # of the engine


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """A LoRA adapter of a model."""

    name: str  # that requests use
    folder: str
    created: int  # epoch seconds
    configured: bool = False  # in the settings; else it was loaded by a request


@dataclass(frozen=True, slots=True)
class ModelCard:
    id: str
    created: int  # epoch seconds
    kind: Kind
    state: ModelState
    dialect: str | None = None  # format of tool calls; None: detected in the chat template
    parent: str | None = None  # of a LoRA adapter: the model that it changes
    progress: LoadProgress | None = None  # of the load that runs, once there is any

    @property
    def loaded(self) -> bool:
        return self.state == "loaded"
