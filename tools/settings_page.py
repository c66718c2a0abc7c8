"""Writes docs/settings.md and .env.example from the settings: `python -m tools.settings_page`."""

import textwrap
from pathlib import Path

from tools.compatibility import kind, table
from tools.settings_list import JOINT, PREFIX, Section, Setting, sections

ROOT = Path(__file__).parent.parent
PAGE, EXAMPLE = ROOT / "docs" / "settings.md", ROOT / ".env.example"
WIDTH = 120
MEBI = 2**20
INTRODUCTION = """\
# Settings

Written from the code by `python -m tools.settings_page`, and checked by a test.

A setting is an environment variable, a line in `.env` ([an example](../.env.example)), or a key in `parley.toml`, which
the rest of this page calls by the variable's name: `PARLEY_SERVER__PORT` is `port` in the table `[server]`. Options of
`parley serve` win over the environment, which wins over `.env`, which wins over `parley.toml`. Lists and objects are
JSON, in the TOML file TOML's own. An unknown name is rejected, with the nearest known one. An error in the set-up
(settings, model files, database, port) is reported in one line at start, with exit code 2.

`parley config init` writes a `parley.toml` with every setting, its default and its meaning, and `parley config check`
says which settings differ from their defaults and where each is set. `PARLEY_CONFIG`, or `parley serve --config`, names
another file.
"""
EXAMPLE_HEAD = """\
# Settings of Parley with their defaults; copy this file to .env and uncomment what you change. See docs/settings.md.
"""


def page() -> str:
    return "\n".join([INTRODUCTION, *(_section(each) for each in sections())]).rstrip() + "\n"


def _section(section: Section) -> str:
    title = f"{PREFIX}{section.group.upper()}{JOINT}…\n\n{section.about}" if section.group else section.about
    rows = [(f"`{each.name}`", _type(each), _shown(each), each.meaning) for each in section.settings]
    return f"## {title}\n" + (f"\n{table(('setting', 'type', 'default', 'meaning'), rows)}" if rows else "")


def _type(setting: Setting) -> str:
    schema = setting.schema
    if options := schema.get("anyOf"):
        schema = next(each for each in options if each.get("type") != "null")
    if "$ref" in schema or schema.get("type") in ("array", "object"):
        return "list" if schema.get("type") == "array" else "object"
    return kind(schema)


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
    return f"# --- {section.about}\n\n" + "\n".join(_lines(each) for each in section.settings)


def _lines(setting: Setting) -> str:
    comment = textwrap.fill(setting.meaning, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return f"{comment}\n#{setting.name}={setting.text or ''}\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    EXAMPLE.write_text(example())
