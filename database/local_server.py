"""A PostgreSQL server of this machine's programs, with its data in a folder and reached by a socket in the file system.

It listens on no port. The folder of its socket is open to its user alone, so that no password is needed.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

DEBIAN = "/usr/lib/postgresql"  # Debian's server programs are not on the PATH
START_S = 60


def program(name: str) -> Path:
    """Raises FileNotFoundError if it is not installed."""
    if found := shutil.which(name):
        return Path(found).resolve()  # it finds other programs relative to itself
    found_here = max(Path(DEBIAN).glob(f"*/bin/{name}"), default=None)
    if found_here is None:
        raise FileNotFoundError("PostgreSQL's server programs (initdb, pg_ctl) are not installed")
    return found_here


def server_user() -> str | None:
    """PostgreSQL refuses to run as root; None: we are not root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Yields its URL. The folder is made at the first start, and kept. A server that was left running is used."""
    pg_ctl, user = program("pg_ctl"), server_user()
    folder = folder.absolute()
    with tempfile.TemporaryDirectory(prefix="parley-pg-") as sockets:  # paths of sockets have 107 bytes at most
        for each in (folder, Path(sockets)):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
            if user:
                shutil.chown(each, user)
        _check_access(folder, user)

        def control(*arguments: str) -> None:
            command = [str(pg_ctl), f"--pgdata={folder}/data", f"--log={folder}/log", f"--timeout={START_S}", "--wait"]
            done = subprocess.run(
                [*command, *arguments],
                user=user,
                cwd=sockets,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for us: replicas write until they are done
                check=False,
            )
            if done.returncode:
                raise OSError(f"PostgreSQL in {folder} does not {arguments[0]}: see {folder}/log")

        if not (folder / "data" / "PG_VERSION").exists():
            control("init", "--options=--auth=trust --username=parley --encoding=UTF8")
        if (folder / "data" / "postmaster.pid").exists():  # left by a process that was killed
            control("stop", "--mode=fast")
        control("start", f"--options=-c listen_addresses='' -c unix_socket_directories='{sockets}'")
        try:
            yield f"postgresql+asyncpg://parley@/postgres?host={quote(sockets, safe='')}"
        finally:
            control("stop", "--mode=fast")


def _check_access(folder: Path, user: str | None) -> None:
    """As another user the server must be able to enter all folders above its own."""
    if user is None:
        return
    for above in folder.parents:
        if not above.stat().st_mode & 0o001:
            raise OSError(f"PostgreSQL runs as '{user}', which cannot enter {above}: name a database")
