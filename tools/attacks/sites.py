"""The attacked servers: two temporary ones on loopback, or a running one."""

import json
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from services.models.default_models import DEFAULT_CHAT
from services.models.fetch import fetch
from tools.attacks.target import Target
from tools.faults import seeing_model
from tools.faults.server import Server

SEEING = "seeing"
FILES = 256  # open files of the server without keys
DEADLINE_S = 2


@contextmanager
def guarded(models_dir: Path) -> Iterator[Target]:
    """A server with two keys, the default models, and a vision model that may fetch from any public host."""
    keys = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    with _served(models_dir, {"PARLEY_API_KEYS": ",".join(keys)}) as server:
        yield Target("127.0.0.1", server.port, keys, server.pid, seeing_model=SEEING)


@contextmanager
def unguarded(models_dir: Path) -> Iterator[Target]:
    """A server without keys, with few open files and short timeouts."""
    times = {f"PARLEY_SERVER__{name}_TIMEOUT_S": str(DEADLINE_S) for name in ("HEADERS", "BODY")}
    with _served(models_dir, times, files=FILES) as server:
        yield Target("127.0.0.1", server.port, pid=server.pid)


def named(address: str, keys: tuple[str, ...]) -> Target:
    """Raises ValueError."""
    parts = urlsplit(address)
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
        raise ValueError("the address is http://HOST:PORT")
    if len(keys) not in (0, 2):
        raise ValueError("two keys are needed, whose holders attack each other, or none where the server has none")
    return Target(parts.hostname, parts.port or 80, keys)


@contextmanager
def _served(models_dir: Path, settings: dict[str, str], files: int | None = None) -> Iterator[Server]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="parley-attack-")))
        seeing = seeing_model.make(folder / SEEING)
        models = {
            "PARLEY_MODELS_DIR": str(models_dir.resolve()),
            "PARLEY_MODELS": json.dumps([{"name": str(seeing), "id": SEEING}]),
            "PARLEY_IMAGES__HOSTS": '["*"]',
        }
        server = Server(
            folder,
            f"sqlite:///{folder}/parley.db",
            fetch(DEFAULT_CHAT, models_dir).resolve(),
            settings=models | settings,
            files=files,
        )
        stack.callback(server.kill)
        server.start()
        yield server
