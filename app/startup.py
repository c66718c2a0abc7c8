"""How the process of the service begins, and how it ends where nothing can be served: one line and exit code 2."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from multiprocessing import parent_process
from typing import Any, NoReturn

from pydantic import BaseModel
from sqlalchemy.engine import make_url

from app.common.settings import Settings
from services.model_service import ModelConfig
from tools import exits

logger = logging.getLogger(__name__)

STARTUP_FAILURE = 3  # uvicorn's: a worker that ends with it is not started again
SHOWN = 80  # characters of a value
SECRETS = ("PARLEY_API_KEYS", "PARLEY_SERVER__SECRET")


class Process:
    """The server's own process. uvicorn shows a failed start as a traceback and ends with another code."""

    def __init__(self) -> None:
        self.has_failed = False

    async def refuse(self, line: str) -> NoReturn:
        """Before the socket is open. Does not come back: the server's tasks end with the event loop."""
        exits.print_error(line)
        logging.getLogger("uvicorn.error").disabled = True
        self._exit_soon()
        await asyncio.Event().wait()
        raise AssertionError

    def give_up(self, line: str) -> None:
        """While requests are answered already: they are ended as at SIGTERM."""
        if not self.has_failed:
            self.has_failed = True
            exits.print_error(line)
            signal.raise_signal(signal.SIGTERM)

    def ended(self) -> None:
        """The last of the lifespan: nothing is held any more."""
        if self.has_failed:
            self._exit_soon()

    def _exit_soon(self) -> None:
        code = STARTUP_FAILURE if parent_process() else exits.CODE
        asyncio.get_running_loop().call_soon(sys.exit, code)


def uvicorn_server() -> Any | None:
    """uvicorn hands itself to nobody, but its signal handler is its own; None: another server runs the app."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return server if hasattr(server, "started") and hasattr(server, "config") else None


async def listening(server: Any | None) -> None:
    """Returns once the socket is open. Until then nothing heavy begins, which could only be waited for: the address may
    be in use. uvicorn tells of it by a flag alone."""
    while server is not None and not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def announce(settings: Settings, configs: Sequence[ModelConfig], preloaded: Sequence[str], server: Any | None) -> None:
    """What is served, before the first request."""
    logger.info("page: %s", _page(getattr(server, "config", settings.server)))
    logger.info("models: %s", ", ".join(_model(each, each.name in preloaded) for each in configs))
    logger.info("database: %s", _database(settings.database.url))
    if settings.api_keys:
        logger.info("keys: %d; every request but the probes needs one", len(settings.api_keys))
    else:
        logger.warning("no PARLEY_API_KEYS: everybody who reaches this server may use it")
    logger.info("settings: %s", ", ".join(changed(settings)) or "as they come")


def changed(group: BaseModel, prefix: str = "PARLEY_") -> Iterator[str]:
    """The settings that differ from their defaults, secrets masked."""
    for name, field in type(group).model_fields.items():
        value, variable = getattr(group, name), prefix + name.upper()
        if isinstance(value, BaseModel):
            yield from changed(value, f"{variable}__")
        elif value != field.get_default(call_default_factory=True):
            yield f"{variable}={_shown(variable, value)}"


def _shown(variable: str, value: Any) -> str:
    if variable in SECRETS:
        return "***"
    if variable == "PARLEY_DATABASE__URL":
        return _masked(value)
    text = str([each.name for each in value]) if variable == "PARLEY_MODELS" else str(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def _page(config: Any) -> str:
    """`config`: uvicorn's, where it is known: `uvicorn --port` is no setting of ours."""
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
    """Passwords may also stand among the parameters."""
    parsed = make_url(url)
    query = {name: "***" if "pass" in name.lower() else value for name, value in parsed.query.items()}
    return parsed.set(query=query).render_as_string(hide_password=True)
