"""Names the process that writes a turn, and tells whether the process of a name is gone.

A name is `host:pid:id`. Containers may share a host name and each run process 1: `host` therefore includes the boot id
and the container's mounts, and `id` is random for each process.
"""

import hashlib
import os
import socket
from pathlib import Path
from uuid import uuid4

ID = uuid4().hex[:12]
BOOT = Path("/proc/sys/kernel/random/boot_id")
MOUNTS = Path("/proc/self/mountinfo")
OWN_FILES = {"/etc/hosts", "/etc/hostname"}  # container runtimes mount these from a folder of the container


def this_writer() -> str:
    return f"{_host()}:{os.getpid()}:{ID}"


def is_gone(writer: str | None, me: str) -> bool:
    """Decidable for processes of this host only; others are detected by missing checkpoints. A row with our own name is
    from a write whose result was lost; our pid under another id is from before a restart."""
    if writer is None or writer == me:
        return True
    host, pid = _split(writer)
    own_host, own_pid = _split(me)
    return host == own_host and pid.isdigit() and (pid == own_pid or not _is_alive(int(pid)))


def _split(writer: str) -> tuple[str, str]:
    host, pid, *_ = [*writer.split(":"), ""]
    return host, pid


def _host() -> str:
    """The host name, with a hash of the boot id and the container's mounts."""
    parts = [_text(BOOT), *(line[3] for line in map(str.split, _text(MOUNTS).splitlines()) if line[4] in OWN_FILES)]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    return f"{socket.gethostname().replace(':', '-')}-{digest}"


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # not Linux
        return ""


def _is_alive(pid: int) -> bool:
    if os.name != "posix":  # signal 0 tests for existence on POSIX only
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
