"""What the fork server starts is a process like any other."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fork_server import Start
from tests.forked import ForkedProcess, fork_server

Begin = Callable[..., ForkedProcess]


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    def begin(program: str, *arguments: str, files: int | None = None, **environment: str) -> ForkedProcess:
        (tmp_path / "program.py").write_text(program)
        with (tmp_path / "output").open("wb") as output:
            return fork_server().start(Start(["program", *arguments], str(tmp_path), environment, files), output)

    return begin


def test_its_own_place_environment_arguments_and_output(begin: Begin, tmp_path: Path) -> None:
    process = begin(
        "import os, resource, sys\n"
        "print(__name__, sys.argv[1:], os.getcwd(), dict(os.environ), os.getpid(), os.getppid(), flush=True)\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE), sorted(os.listdir('/proc/self/fd'))[:-1], file=sys.stderr)\n"
        "sys.exit(5)\n",
        "one",
        "two",
        files=100,
        NAME="value",
    )
    assert process.wait(60) == process.poll() == 5
    first, second = (tmp_path / "output").read_text().splitlines()
    begun = f"__main__ ['one', 'two'] {tmp_path} {{'NAME': 'value'}} {process.pid} "
    assert first.startswith(begun)
    assert int(first.removeprefix(begun)) != os.getpid()
    assert second == "(100, 100) ['0', '1', '2']"


def test_everything_is_imported_and_no_app_is_built(begin: Begin, tmp_path: Path) -> None:
    process = begin("import sys\nprint([name in sys.modules for name in ('torch', 'app.lifespan', 'app.main')])")
    assert process.wait(60) == 0
    assert (tmp_path / "output").read_text() == "[True, True, False]\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_signals(begin: Begin, number: signal.Signals) -> None:
    process = begin("import time\ntime.sleep(600)")
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0)
    process.send_signal(number)
    assert process.wait(60) == -number
    process.kill()  # of what has ended: nothing


def test_an_error_is_reported_as_python_does(begin: Begin, tmp_path: Path) -> None:
    assert begin("raise ValueError('no')").wait(60) == 1
    assert (tmp_path / "output").read_text().splitlines()[-1] == "ValueError: no"
