"""The server as a process, which can be killed and restarted."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import requests

from tools.faults.postgres import free_port

START_S = 120.0


@dataclass(slots=True)
class Server:
    """Keeps its port across restarts, so that clients reach it again."""

    folder: Path
    database_url: str
    model: Path
    port: int = field(default_factory=free_port)
    settings: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()  # of `parley serve`
    files: int | None = None  # limit of open files; None: that of this process
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Returns when it is ready to answer."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PARLEY_")}
        environment |= {
            "PARLEY_DATABASE__URL": self.database_url,
            "PARLEY_MODEL__NAME": str(self.model),
            "PARLEY_MODEL__PRELOAD": "true",
            "PARLEY_ENGINE__COMPILE": "false",
            "PARLEY_SERVER__PORT": str(self.port),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")])),
            **self.settings,
        }
        limit = [] if self.files is None else ["sh", "-c", f'ulimit -n {self.files}; exec "$@"', "sh"]
        command = [*limit, sys.executable, "-m", "tools.cli", "serve", *self.options]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        assert self._process
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if requests.get(f"{self.url}/health/ready", timeout=5).ok:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.05)
        raise RuntimeError(f"The server did not become ready, see {self.folder / 'server.log'}")

    def kill(self) -> None:
        """SIGKILL: without a shutdown."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """SIGTERM: with a shutdown."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
