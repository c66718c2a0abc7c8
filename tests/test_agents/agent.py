"""One run of an agent program: an environment with nothing in it, a home and a folder to work in."""

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.test_agents import loopback
from tests.test_agents.programs import SECONDS, Program, installed
from tests.test_agents.service import ROOT, Service

EXAMPLES = ROOT / "examples" / "agents"
WRITTEN_URL = "http://127.0.0.1:8000"  # in the examples
NOTHING_ELSE = "/usr/local/bin:/usr/bin:/bin"


@dataclass
class Agent:
    """`folder` gets a home and a place to work."""

    program: Program
    service: Service
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        installed(self.program)
        self.home.mkdir()
        self.work.mkdir()

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def configure(self, example: str, place: str) -> None:
        """Copies an example to where the program looks for it, below its home."""
        target = self.home / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.text(example))

    def text(self, example: str) -> str:
        """Of an example, with the service's address."""
        return (EXAMPLES / example).read_text().replace(WRITTEN_URL, self.service.url)

    def run(self, *arguments: str) -> str:
        """What it printed; it must end well."""
        command = [*loopback.joining(self.service.process), str(installed(self.program)), *arguments]
        process = subprocess.Popen(
            command,
            cwd=self.work,
            env=self._all_of_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            printed, complaints = process.communicate(timeout=SECONDS / 4)
        except subprocess.TimeoutExpired:
            _end_group(process)
            raise AssertionError(f"it did not end: {process.communicate()}") from None
        finally:  # also of what it has left behind, and where the run is interrupted
            _end_group(process)
        assert process.returncode == 0, f"{printed}\n{complaints}"
        return printed

    def _all_of_environment(self) -> dict[str, str]:
        node = shutil.which("node")
        assert node
        own = {"PATH": f"{Path(node).parent}:{NOTHING_ELSE}", "HOME": str(self.home), "TERM": "dumb"}
        return own | loopback.environment() | self.environment


def _end_group(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
