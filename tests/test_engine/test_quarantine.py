"""A package that took its process along is not tried again."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from services.engine.cpu.quarantine import CRASHES, Quarantine

DIE = """
import os, sys
from pathlib import Path
from services.engine.cpu.quarantine import Quarantine
Quarantine(Path(sys.argv[1])).use(lambda: os.kill(os.getpid(), int(sys.argv[2])))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "step.pt2"


def uses(file: Path) -> int:
    used: list[int] = []
    quarantine = Quarantine(file)
    if not quarantine.holds():
        quarantine.use(lambda: used.append(1))
    return len(used)


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
def test_a_crash_in_its_first_use_is_its_last_one(file: Path, number: int, caplog: pytest.LogCaptureFixture) -> None:
    run = subprocess.run([sys.executable, "-c", DIE, str(file), str(number)], check=False, timeout=120)
    assert run.returncode == -number
    assert uses(file) == 0
    assert len(caplog.messages) == 1
    file.with_suffix(".crashed").unlink()
    assert uses(file) == 1


def test_what_works_is_used_each_time(file: Path) -> None:
    assert [uses(file), uses(file)] == [1, 1]
    assert not file.with_suffix(".crashed").exists()


def test_an_error_is_no_crash(file: Path) -> None:
    with pytest.raises(ValueError, match="differs"):
        Quarantine(file).use(lambda: (_ for _ in ()).throw(ValueError("differs")))
    assert uses(file) == 1


def test_a_process_that_goes_meanwhile_has_not_crashed(file: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        go.wait()

    quarantine = Quarantine(file)
    thread = threading.Thread(target=quarantine.use, args=(first,))
    thread.start()
    begun.wait()
    assert file.with_suffix(".crashed").exists()
    quarantine.abandon()
    assert not file.with_suffix(".crashed").exists()
    go.set()
    thread.join()


def test_another_process_that_is_trying_it_is_waited_for(file: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        go.wait()

    one = threading.Thread(target=Quarantine(file).use, args=(first,))
    one.start()
    begun.wait()
    used: list[int] = []
    other = threading.Thread(target=lambda: used.append(uses(file)))
    other.start()
    go.set()
    one.join()
    other.join()
    assert used == [1]


def test_a_folder_that_cannot_be_written_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    assert uses(tmp_path / "folder" / "step.pt2") == 1


def test_being_killed_is_no_crash() -> None:
    assert signal.SIGKILL not in CRASHES
