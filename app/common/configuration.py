"""Reads the settings of this process; reports each error in one line."""

import re
from typing import Any

from pydantic import ValidationError
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource, SettingsError

from app.common.config_file import ConfigFile, WrongConfigFile, located
from app.common.setting_names import JOINT, PREFIX, is_set, nearest_field
from app.common.settings import Settings, UnknownSettings


class WrongSettings(ValueError):
    """Has one line for each error."""


def read(**overrides: Any) -> Settings:
    """`overrides` win over the environment, which wins over `.env`, which wins over `parley.toml`."""
    try:
        return Settings(**overrides)
    except ValidationError as wrong:
        raise WrongSettings("\n".join(_line(each) for each in wrong.errors())) from None
    except (UnknownSettings, WrongConfigFile) as wrong:
        raise WrongSettings(str(wrong)) from None
    except SettingsError as wrong:
        raise WrongSettings(_invalid_json(wrong)) from None
    except (OSError, UnicodeError) as wrong:
        raise WrongSettings(f".env cannot be read: {wrong}") from None


def _line(error: Any) -> str:
    path: tuple[int | str, ...] = error["loc"]
    if error["type"] == "extra_forbidden":
        return f"{_name(path[:-1], path)}: there is no '{path[-1]}' in it{nearest_field(path, Settings)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{_name(path, path)}: {message}" if path else message


def _name(path: tuple[int | str, ...], value: tuple[int | str, ...]) -> str:
    """`path` as the place writes it where `value`, the wrong one, stands: the environment or the configuration file."""
    if path and ConfigFile(Settings).has(value) and not _in_environment(value):
        return f"{located()}: " + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]
    parts = [f"[{part}]" if isinstance(part, int) else JOINT + part.upper() for part in path]
    return "PARLEY_" + "".join(parts).removeprefix(JOINT)


def _in_environment(path: tuple[int | str, ...]) -> bool:
    """Or in `.env`: both win over the file."""
    sources = (EnvSettingsSource(Settings), DotEnvSettingsSource(Settings))
    return any(is_set(source.env_vars, path) for source in sources)


def _invalid_json(error: SettingsError) -> str:
    """pydantic names the group only; the value may be a secret and is not quoted."""
    found = re.search(r'field "(\w+)"', str(error))
    group = f"{PREFIX}{found[1]}".upper() if found else ".env or the environment"
    return f"{group}: the value is no JSON: {error.__cause__ or error}"
