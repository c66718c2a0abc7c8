"""The whole service around scripted models: a process of its own, in a network of its own."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.test_agents import loopback
from tests.test_agents.scripted import RECORD, builder

ROOT = Path(__file__).parents[2]
LOG = "service.log"
MODELS = {"default": "131072", "short": "24576", "sees": "131072+"}  # and how long they are


@dataclass(frozen=True, slots=True)
class Service:
    process: int
    url: str
    folder: Path
    since: int = 0  # characters of its log that are of others

    def for_one_test(self) -> "Service":
        return replace(self, since=len(self._log()))

    def play(self, name: str, *lines: str) -> str:
        """What is said to each prompt in turn; the words by which a prompt asks for it."""
        (self.folder / f"{name}.json").write_text(json.dumps(lines))
        return f"Please do play:{name} for me."

    def record(self, name: str) -> list[dict[str, str]]:
        """Each prompt of a play, and what was said."""
        lines = (self.folder / RECORD).read_text().splitlines()
        return [each for each in map(json.loads, lines) if f"play:{name}" in each["prompt"]]

    def refused(self) -> list[str]:
        """Requests that had another answer than they asked for."""
        return re.findall(r"^.* (?:[A-Z]+ /\S* [45]\d\d \d+ ms|ERROR .*)$", self._log()[self.since :], re.MULTILINE)

    def _log(self) -> str:
        return (self.folder / LOG).read_text()


@contextmanager
def serving(folder: Path) -> Iterator[Service]:
    command = [*loopback.beginning(), sys.executable, "-m", __name__, str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PARLEY_")}
    with (
        (folder / LOG).open("wb") as log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout
            url = process.stdout.readline().strip()
            assert url, (folder / LOG).read_text()
            yield Service(process.pid, url, folder)
        finally:
            process.terminate()


def _settings(folder: Path) -> dict[str, Any]:
    models = [{"name": source, "id": name, "preload": True} for name, source in MODELS.items()]
    return {
        "model": {**models[0], "aliases": {"*": "default"}},
        "models": models[1:],
        "embedding": {"name": "none", "kind": "embedding"},
        "database": {"url": f"sqlite:///{folder}/parley.db"},
        "api_keys": [],
    }


def _serve(folder: Path) -> None:
    import uvicorn

    from app.common.settings import Settings
    from app.main import create_app

    app = create_app(Settings(_env_file=None, **_settings(folder)), build=builder(folder))

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            port = self.servers[0].sockets[0].getsockname()[1]
            print(f"http://127.0.0.1:{port}", flush=True)  # noqa: T201

    Server(uvicorn.Config(app, port=0, http="h11", log_config=None)).run()


if __name__ == "__main__":
    if loopback.is_possible():
        loopback.bring_up()
    _serve(Path(sys.argv[1]))
