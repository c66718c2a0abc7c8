"""What is served: the configuration of a model, and its card."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from services.engine.base import SamplingDefaults

Kind = Literal["chat", "embedding", "reranker"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    name: str  # what requests call it
    source: str  # folder, hub name, GGUF file, or the name of a default model
    kind: Kind = "chat"
    pinned: bool = False  # never freed
    required: bool = False  # without it the service is not ready
    idle_ttl: float | None = None  # seconds without a user until it is freed; None: never
    dialect: str | None = None  # the format of its tool calls; None: as its chat template shows
    sampling: SamplingDefaults | None = None  # where requests name nothing; None: as its authors recommend
    engine: str = "local"  # a name of `services.engine.ENGINES`, or package.module:Class
    settings: Mapping[str, Any] = field(default_factory=dict)  # general ones, of which an engine takes what it knows
    options: Mapping[str, Any] = field(default_factory=dict)  # the engine's own


@dataclass(frozen=True, slots=True)
class ModelCard:
    id: str
    created: int  # epoch seconds
    kind: Kind
    loaded: bool
    dialect: str | None = None  # the format of its tool calls; None: as its chat template shows
