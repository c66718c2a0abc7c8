"""What is served: the configuration of a model, and its card."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from services.engine.base import SamplingDefaults

Kind = Literal["chat", "embedding", "reranker"]


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
    settings: Mapping[str, Any] = field(default_factory=dict)  # an engine gets those that it has parameters for
    options: Mapping[str, Any] = field(default_factory=dict)  # of the engine


@dataclass(frozen=True, slots=True)
class ModelCard:
    id: str
    created: int  # epoch seconds
    kind: Kind
    loaded: bool
    dialect: str | None = None  # format of tool calls; None: detected in the chat template
