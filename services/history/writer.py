"""Which process writes a turn: a name that no other one has, and whether the process of a name is gone.

`host:pid:id`. Two containers may have one host name, and the process 1 each: `host` tells the places apart where a
process of that number is the same one, and `id` is drawn by each process.
"""

import hashlib
import os
import socket
from pathlib import Path
from uuid import uuid4

ID = uuid4().hex[:12]
BOOT = Path("/proc/sys/kernel/random/boot_id")
MOUNTS = Path("/proc/self/mountinfo")
OWN_FILES = {"/etc/hosts", "/etc/hostname"}  # mounted into each container from a folder of its own, which stays with it


def this_writer() -> str:
    return f"{_place()}:{os.getpid()}:{ID}"


def is_gone(writer: str | None, me: str) -> bool:
    """Known for processes of this place only: all others are told by their silence. Our own name, met from outside, is
    of a write whose end was never known; our number under another name is from before a restart."""
    if writer is None or writer == me:
        return True
    place, pid = _split(writer)
    own_place, own_pid = _split(me)
    return place == own_place and pid.isdigit() and (pid == own_pid or not _is_alive(int(pid)))


def _split(writer: str) -> tuple[str, str]:
    place, pid, *_ = [*writer.split(":"), ""]
    return place, pid


def _place() -> str:
    """The host's name, and what tells it from others of that name: the boot, and the container."""
    known = [_text(BOOT), *(line[3] for line in map(str.split, _text(MOUNTS).splitlines()) if line[4] in OWN_FILES)]
    digest = hashlib.sha256("\n".join(known).encode()).hexdigest()[:12]
    return f"{socket.gethostname().replace(':', '-')}-{digest}"


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # of other systems
        return ""


def _is_alive(pid: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 is not a question
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
