"""The real service as a process of its own, and what tests ask of it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import requests

from tests.databases import free_port
from tests.fork_server import Start
from tests.forked import Process, fork_server

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
CHAT = "SmolLM2-135M-Instruct"
ENDLESS = "Write all even numbers from 2 to 5000, separated by commas."  # greedy, it goes on for thousands of tokens
UVICORN = ["uvicorn", "app.main:app", "--http", "h11", "--port"]
SECONDS = 120.0  # no test measures time: what takes so long never happens

T = TypeVar("T")


class Service:
    def __init__(self, process: Process, port: int, log: Path) -> None:
        self.folder = log.parent
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._log = log

    def log(self) -> str:
        return self._log.read_text()

    def complaints(self) -> list[str]:
        """What a busy machine is warned of is no complaint."""
        found = re.findall(r"^.*(?: ERROR | WARNING |Traceback).*$", self.log(), re.MULTILINE)
        return [line for line in found if "keeps the processors busy" not in line]

    def gauge(self, name: str) -> float:
        metrics = requests.get(f"{self.url}/metrics", timeout=SECONDS).text
        found = re.search(rf"^parley_{name}\{{.*\}} (\S+)$", metrics, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def ask(self, prompt: str, **more: Any) -> dict[str, Any]:
        answer = requests.post(f"{self.url}/chat/new/message/", json={"prompt": prompt, **more}, timeout=SECONDS)
        assert answer.status_code == 200, answer.text
        said: dict[str, Any] = answer.json()
        return said

    def messages(self, **query: Any) -> list[dict[str, Any]]:
        answer = requests.get(f"{self.url}/chat/get/messages/", query, timeout=SECONDS)
        assert answer.status_code == 200, answer.text
        data: list[dict[str, Any]] = answer.json()["data"]
        return data

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(SECONDS)

    def wait(self) -> int:
        """Until it has ended by itself; its exit status."""
        return self.process.wait(SECONDS)


@contextmanager
def running(
    folder: Path, command: list[str] = UVICORN, files: int | None = None, *, cold: bool = False, **settings: str
) -> Iterator[Service]:
    """The service in `folder`, which nothing but `settings` configures; several lives may follow each other there.

    `command` is a module and what comes before its port; `files` is how many it may open. `cold`: by the command
    itself, which imports everything anew, and not by the fork server.
    """
    folder.mkdir(exist_ok=True)
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PARLEY_")}
    environment |= {"PYTHONPATH": str(ROOT), "PARLEY_MODELS_DIR": str(MODELS)}
    environment |= {"PARLEY_ENGINE__COMPILE": "false"}  # a minute of work for each of many short lives
    environment |= {f"PARLEY_{name}": value for name, value in settings.items()}
    start = Start([*command, str(port)], str(folder), environment, files)
    log = folder / f"service-{port}.log"
    with log.open("wb") as output:
        process: Process = _spawn(start, output) if cold else fork_server().start(start, output)
    service = Service(process, port, log)
    try:
        until(lambda: _is_up(service))
        yield service
    finally:
        _stop(service)


def _spawn(start: Start, output: BinaryIO) -> subprocess.Popen[bytes]:
    limit = [] if start.files is None else ["sh", "-c", f'ulimit -n {start.files}; exec "$@"', "sh"]
    command = [*limit, sys.executable, "-m", *start.command]
    return subprocess.Popen(command, cwd=start.folder, env=start.environment, stdout=output, stderr=output)


def _is_up(service: Service) -> bool:
    assert service.process.poll() is None, service.log()
    try:
        return requests.get(f"{service.url}/health", timeout=SECONDS).ok
    except requests.ConnectionError:
        return False


def _stop(service: Service) -> None:
    if service.process.poll() is None:
        service.terminate()
    try:
        service.wait()
    except subprocess.TimeoutExpired:
        service.kill()
        raise


def events_of(response: requests.Response) -> Iterator[str]:
    """The data of each event; keep-alives are passed over."""
    for line in response.iter_lines(chunk_size=1, decode_unicode=False):
        if line.startswith(b"data: "):
            yield line.removeprefix(b"data: ").decode()


def text_of(chunks: Iterable[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def until(is_so: Callable[[], T]) -> T:
    """What `is_so` says, once it says something."""
    deadline = time.monotonic() + SECONDS
    while not (found := is_so()):
        assert time.monotonic() < deadline, f"not within {SECONDS:g} s"
        time.sleep(0.05)
    return found
