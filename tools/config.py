"""`parley config`: writes and checks the configuration file."""

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource

from app.common import config_file, configuration, model_configs
from app.common.config_file import ConfigFile
from app.common.exits import in_one_line
from app.common.setting_names import is_set
from app.common.settings import Settings
from app.startup import changed
from tools.settings_list import JOINT, PREFIX, Section, Setting, sections

app = typer.Typer(
    name="config", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)

WIDTH = 120
HEAD = """\
# Settings of Parley with their defaults: uncomment what you change. Environment variables and .env win over this file.
# `parley config check` says what is in effect. Paths are relative to the working directory; where a meaning speaks of
# JSON, this file has TOML's lists and tables.
"""
MODELS = """\
# Further models, each with the settings of [model] and `kind` (chat, embedding, reranker).
#[[models]]
#name = "Qwen/Qwen3-Reranker-0.6B"
#kind = "reranker"
"""


@app.callback()
def config() -> None:
    """Settings in a file: parley.toml in the working directory, or the file that PARLEY_CONFIG names."""


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = config_file.DEFAULT,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a file with every setting, its default and its meaning, all commented out."""
    with in_one_line():
        if path.exists() and not force:
            raise ValueError(f"{path} is there already: --force replaces it")
        path.touch(mode=0o600)  # it is the place for keys and passwords
        path.write_text(example())
    typer.echo(f"{path} written: uncomment what you change, then run parley config check")


@app.command()
def check() -> None:
    """Read all settings, look for the models' files, and print what differs from the defaults, and where it is set."""
    from services.models import sources

    with in_one_line():
        settings = configuration.read()
        sources.check(model_configs.configs(settings))
    where = origin()
    for line in changed(settings):
        typer.echo(f"{line}  ({where(line.partition('=')[0])})")
    typer.echo("The settings are valid.")


def origin() -> Callable[[str], str]:
    """Where a setting has its value from, by its variable's name: the first source that has it wins."""
    in_environment, in_file = EnvSettingsSource(Settings), ConfigFile(Settings)
    in_env_file = DotEnvSettingsSource(Settings)

    def find(variable: str) -> str:
        path = tuple(variable.removeprefix(PREFIX).lower().split(JOINT))
        for source, name in ((in_environment, "environment"), (in_env_file, ".env")):
            if is_set(source.env_vars, path):
                return name
        return str(config_file.located()) if in_file.has(path) else "default"

    return find


def example() -> str:
    """All settings as TOML, commented out; the groups' headers stand, as an empty table sets nothing."""
    return "\n".join([HEAD, *(_table(each) for each in sections()), MODELS])


def _table(section: Section) -> str:
    header = f"# {section.about}\n[{section.group}]\n\n" if section.group else ""
    return header + "\n".join(_lines(each) for each in section.settings if each.name != f"{PREFIX}MODELS")


def _lines(setting: Setting) -> str:
    name = setting.name.rpartition(JOINT)[2].removeprefix(PREFIX).lower()
    comment = textwrap.fill(setting.meaning, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return f"{comment}\n#{name} = {_value(setting)}".rstrip() + "\n"


def _value(setting: Setting) -> str:
    """The default as TOML writes it; nothing if it is unset. JSON's scalars, lists and empty objects are TOML's."""
    if setting.text is None:
        return ""
    return json.dumps(
        setting.default if isinstance(setting.default, bool | int | float | list | dict) else setting.text
    )
