"""Every setting with its default and meaning, as the documents and `parley config` show them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app.common.settings import EmbeddingModelSettings, Settings

PREFIX, JOINT = "PARLEY_", "__"
KEYS = "PARLEY_API_KEYS"  # an error if it is set but empty


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    field: FieldInfo
    schema: dict[str, Any]

    @property
    def default(self) -> Any:
        return self.field.get_default(call_default_factory=True)

    @property
    def text(self) -> str | None:
        """The default as an environment variable has it; None if it is unset."""
        match self.default:
            case _ if self.name == KEYS or self.default is None:
                return None
            case bool() | list() | dict():
                return json.dumps(self.default)
            case value:
                return str(value)

    @property
    def meaning(self) -> str:
        return " ".join((self.field.description or "").split())


@dataclass(frozen=True, slots=True)
class Section:
    group: str | None  # as parley.toml has it; None: settings outside of groups
    about: str
    settings: list[Setting]  # empty for the embedding model: those of the chat model


def sections() -> list[Section]:
    groups, others = [], []
    for name, field in Settings.model_fields.items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            about = " ".join((model.__doc__ or "").split())
            rows = [] if model is EmbeddingModelSettings else list(_settings(model, f"{PREFIX}{name.upper()}{JOINT}"))
            groups.append(Section(name, about, rows))
        else:
            others.append(name)
    general = [each for each in _settings(Settings, PREFIX) if each.name.removeprefix(PREFIX).lower() in others]
    return [Section(None, "General", general), *groups]


def _settings(model: type[BaseModel], prefix: str) -> Iterator[Setting]:
    schemas = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        yield Setting(prefix + name.upper(), field, schemas[name])
