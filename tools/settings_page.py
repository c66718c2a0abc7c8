"""Writes docs/settings.md and .env.example from the settings: `python -m tools.settings_page`."""

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app.common.settings import EmbeddingModelSettings, Settings
from tools.compatibility import kind, table

ROOT = Path(__file__).parent.parent
PAGE, EXAMPLE = ROOT / "docs" / "settings.md", ROOT / ".env.example"
PREFIX, JOINT = "PARLEY_", "__"
KEYS = "PARLEY_API_KEYS"  # an error if it is set but empty
WIDTH = 120
MEBI = 2**20
INTRODUCTION = """\
# Settings

Written from the code by `python -m tools.settings_page`, and checked by a test.

A setting is an environment variable or a line in `.env` ([an example](../.env.example)); options of `parley serve` win
over both. Lists and objects are JSON. An unknown name is rejected, with the nearest known one. An error in the set-up
(settings, model files, database, port) is reported in one line at start, with exit code 2.
"""
EXAMPLE_HEAD = """\
# Settings of Parley with their defaults; copy this file to .env and uncomment what you change. See docs/settings.md.
"""


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
    def type(self) -> str:
        schema = self.schema
        if options := schema.get("anyOf"):
            schema = next(each for each in options if each.get("type") != "null")
        if "$ref" in schema or schema.get("type") in ("array", "object"):
            return "list" if schema.get("type") == "array" else "object"
        return kind(schema)

    @property
    def meaning(self) -> str:
        return " ".join((self.field.description or "").split())


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    settings: list[Setting]


def sections() -> list[Section]:
    groups, others = [], []
    for name, field in Settings.model_fields.items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            about = " ".join((model.__doc__ or "").split())
            rows = [] if model is EmbeddingModelSettings else list(_settings(model, f"{PREFIX}{name.upper()}{JOINT}"))
            groups.append(Section(f"{PREFIX}{name.upper()}{JOINT}…\n\n{about}", rows))
        else:
            others.append(name)
    general = [each for each in _settings(Settings, PREFIX) if each.name.removeprefix(PREFIX).lower() in others]
    return [Section("General", general), *groups]


def _settings(model: type[BaseModel], prefix: str) -> Iterator[Setting]:
    schemas = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        yield Setting(prefix + name.upper(), field, schemas[name])


def page() -> str:
    return "\n".join([INTRODUCTION, *(_section(each) for each in sections())]).rstrip() + "\n"


def _section(section: Section) -> str:
    rows = [(f"`{each.name}`", each.type, _shown(each), each.meaning) for each in section.settings]
    return f"## {section.title}\n" + (f"\n{table(('setting', 'type', 'default', 'meaning'), rows)}" if rows else "")


def _shown(setting: Setting) -> str:
    match setting.default:
        case int() as number if number and number % MEBI == 0:
            return f"`{number}` ({number // MEBI} Mi)"
        case _ if setting.text is None:
            return ""
        case _:
            return f"`{setting.text}`"


def example() -> str:
    return "\n".join([EXAMPLE_HEAD, *(_block(each) for each in sections() if each.settings)])


def _block(section: Section) -> str:
    title = section.title.split("\n\n")[-1]
    return f"# --- {title}\n\n" + "\n".join(_lines(each) for each in section.settings)


def _lines(setting: Setting) -> str:
    comment = textwrap.fill(setting.meaning, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return f"{comment}\n#{setting.name}={setting.text or ''}\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    EXAMPLE.write_text(example())
