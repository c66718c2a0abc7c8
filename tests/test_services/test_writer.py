"""Which process a writer's name belongs to, and whether that is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.history import writer
from services.history.writer import is_gone, this_writer

ROOT = Path(writer.__file__).parents[2]
DOCKER = "9 8 254:1 /docker/containers/{}/hosts /etc/hosts rw,relatime - ext4 /dev/vda1 rw\n"


def test_each_process_has_a_name_of_its_own() -> None:
    command = [sys.executable, "-c", "from services.history.writer import this_writer; print(this_writer())"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    other, own = run.stdout.strip().split(":"), this_writer().split(":")
    assert this_writer() == ":".join(own)
    assert other[0] == own[0]
    assert (other[1], other[2]) != (own[1], own[2])
    assert other[2] != own[2]


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        (None, True),
        ("box-1:1:aaaa", True),  # our own, met from outside
        ("box-1:1:bbbb", True),  # our number in an earlier life
        ("box-2:1:bbbb", False),  # the process 1 of another container, of the same host name
        ("box:1", False),  # as earlier versions wrote it
        ("box-1:999999999:bbbb", True),
        ("box-1:ALIVE:bbbb", False),
        ("box-1:99999999999999999999:bbbb", True),
        ("box-1:x:bbbb", False),
        ("", False),
    ],
    ids=str,
)
def test_who_is_gone(name: str | None, gone: bool) -> None:
    name = name and name.replace("ALIVE", str(os.getpid()))
    assert is_gone(name, "box-1:1:aaaa") == gone


def test_containers_of_one_host_name_are_different_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(writer, "MOUNTS", mounts)

    def started(container: str, id: str) -> str:
        mounts.write_text(DOCKER.format(container))
        monkeypatch.setattr(writer, "ID", id)
        return this_writer()

    first, other, again = started("aaaa", "1"), started("bbbb", "2"), started("aaaa", "3")
    assert not is_gone(first, other)
    assert not is_gone(other, first)
    assert is_gone(first, again)  # the container was started again: what it left is settled at once


def test_elsewhere_there_is_nothing_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MOUNTS", tmp_path / "none")
    monkeypatch.setattr(writer, "BOOT", tmp_path / "none")
    assert is_gone(this_writer(), this_writer())
