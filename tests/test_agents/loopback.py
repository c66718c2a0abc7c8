"""A network of one's own, with nothing in it but this machine's loopback."""

import fcntl
import os
import shutil
import socket
import struct
import subprocess
from functools import cache

IFREQ = "16sh14x"  # a name and flags
SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 0x1, 0x40
MAPPED = [] if os.geteuid() == 0 else ["--map-root-user"]
SAME_USER = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
CLOSED = "http://127.0.0.1:9"


@cache
def is_possible() -> bool:
    """Containers may forbid it."""
    if not shutil.which("unshare") or not shutil.which("nsenter"):
        return False
    return subprocess.run(["unshare", *MAPPED, "--net", "true"], capture_output=True, check=False).returncode == 0


def beginning() -> list[str]:
    """In front of the command of the first process in there, which calls `bring_up`."""
    return ["unshare", *MAPPED, "--net", "--"] if is_possible() else []


def joining(process: int) -> list[str]:
    """In front of the command of each later one."""
    return ["nsenter", f"--target={process}", "--net", *SAME_USER, "--"] if is_possible() else []


def bring_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack(IFREQ, b"lo", IFF_UP | IFF_RUNNING))


def environment() -> dict[str, str]:
    """Where that is not possible: what asks the proxies there are, asks in vain."""
    if is_possible():
        return {}
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    proxies = {form: CLOSED for name in names for form in (name, name.lower())}
    return proxies | {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
