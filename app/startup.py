"""Logs at start what is served: address, models, database, keys and changed settings."""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from sqlalchemy.engine import make_url

from app.common.settings import Settings
from services.models.config import ModelConfig

logger = logging.getLogger(__name__)

MAX_VALUE_CHARS = 80
USER = re.compile(r"//[^/@]*@")
SECRETS = ("PARLEY_API_KEYS", "PARLEY_ADMIN_KEY", "PARLEY_SERVER__SECRET", "PARLEY_FILES__OPTIONS")


def announce(
    settings: Settings,
    configs: Sequence[ModelConfig],
    preloaded: Sequence[str],
    server: Any | None,
    *,
    guarded: bool = False,
) -> None:
    """`guarded`: the database has keys."""
    logger.info("page: %s", _page(getattr(server, "config", settings.server)))
    logger.info("models: %s", ", ".join(_model(each, each.name in preloaded) for each in configs))
    logger.info("database: %s", _database(settings.database.url))
    if settings.api_keys or settings.admin_key or guarded:
        logger.info("keys: %s; all requests except probes need one", _keys(settings, guarded))
    else:
        logger.warning("no keys: anybody who can reach this server may use it")
    logger.info("settings: %s", ", ".join(changed(settings)) or "defaults")


def _keys(settings: Settings, guarded: bool) -> str:
    configured = len(settings.api_keys) + (settings.admin_key is not None)
    return " and ".join([*([f"{configured} of the settings"] * bool(configured)), *(["the database's"] * guarded)])


def changed(group: BaseModel, prefix: str = "PARLEY_") -> Iterator[str]:
    """The settings that differ from their defaults, secrets masked."""
    for name, field in type(group).model_fields.items():
        value, variable = getattr(group, name), prefix + name.upper()
        if isinstance(value, BaseModel):
            yield from changed(value, f"{variable}__")
        elif value != field.get_default(call_default_factory=True):
            yield f"{variable}={_value_text(variable, value)}"


def _value_text(variable: str, value: Any) -> str:
    if variable in SECRETS:
        return "***"
    if variable == "PARLEY_DATABASE__URL":
        return _masked(value)
    if variable == "PARLEY_FILES__URL":
        return USER.sub("//***@", value)
    text = _listed(variable, value)
    return text if len(text) <= MAX_VALUE_CHARS else text[:MAX_VALUE_CHARS] + "…"


def _listed(variable: str, value: Any) -> str:
    if variable == "PARLEY_MODELS":
        return str([each.name for each in value])
    return str([each.url for each in value] if variable.endswith("__UPSTREAMS") else value)


def _page(config: Any) -> str:
    """`config`: uvicorn's if it is known, since `uvicorn --port` is not one of our settings."""
    if getattr(config, "uds", None) or getattr(config, "fd", None) is not None:
        return "/ of the socket that uvicorn was given"
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{config.port or '(a free port)'}/"


def _model(config: ModelConfig, is_preloaded: bool) -> str:
    when = "loading" if is_preloaded else "loaded at its first request"
    source = "" if config.source == config.name else f" from {config.source}"
    return f"{config.name}{source} ({config.kind}, {when})"


def _database(url: str) -> str:
    path = make_url(url).database
    return os.path.abspath(path) if path and url.startswith("sqlite") else _masked(url)


def _masked(url: str) -> str:
    """Query parameters may have passwords too."""
    parsed = make_url(url)
    query = {name: "***" if "pass" in name.lower() else value for name, value in parsed.query.items()}
    return parsed.set(query=query).render_as_string(hide_password=True)
