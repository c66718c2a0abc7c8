"""Settings from a TOML file: `parley.toml` in the working directory, or the file that PARLEY_CONFIG names."""

import os
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, TomlConfigSettingsSource

from app.common import setting_names

VARIABLE = "PARLEY_CONFIG"
DEFAULT = Path("parley.toml")


class WrongConfigFile(ValueError):
    """The file cannot be read, or has a key that is no setting; the message names the file."""


class ConfigFile(TomlConfigSettingsSource):
    """Groups are tables: `[server]` with `port = 9000` is PARLEY_SERVER__PORT. An absent `parley.toml` is no error; an
    absent file that PARLEY_CONFIG names is one."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        path = located()
        if named() and not path.is_file():
            raise WrongConfigFile(f"{VARIABLE}: there is no file {path}")
        try:
            super().__init__(settings_cls, path)
        except (OSError, ValueError) as error:  # tomllib's and UnicodeDecodeError are ValueErrors
            raise WrongConfigFile(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
        known = set(settings_cls.model_fields)
        if unknown := [name for name in self.toml_data if name not in known]:
            raise WrongConfigFile(
                "\n".join(f"{path}: '{name}' is no setting{setting_names.nearest_key(name, known)}" for name in unknown)
            )

    def has(self, path: tuple[int | str, ...]) -> bool:
        """Whether the file sets what is at `path`, or something around it that is no table."""
        value: Any = self.toml_data
        for part in path:
            if isinstance(value, dict):
                if part not in value:
                    return False
                value = value[part]
            elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                value = value[part]
            else:
                return True
        return True


def named() -> str | None:
    """The value of PARLEY_CONFIG, which is read from the process's environment only: `.env` cannot name the file."""
    return os.environ.get(VARIABLE) or None


def located() -> Path:
    return Path(named() or DEFAULT)
