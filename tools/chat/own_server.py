"""A server that a chat starts where none answers, and that ends with it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tools.chat.client import Client, is_loopback
from tools.chat.errors import ChatError
from tools.chat.state_folder import state_folder

POLL_S = 0.2
STOP_S = 30.0
LOG = "server.log"
# -P: a folder `tools` in the working directory is not this package
CHILD = [sys.executable, "-P", "-c", "from tools.chat.server_child import main; main()"]


@contextmanager
def own_server(client: Client, model: str | None) -> Iterator[None]:
    """Returns once it answers; its model may still be loading. Raises ChatError if it ends before."""
    address = urlsplit(client.url)
    if not is_loopback(client.url) or address.scheme != "http":
        raise ChatError(f"No server answers at {client.url}")
    options = ["--host", address.hostname or "", "--port", str(address.port or 80)]
    log = state_folder() / LOG
    # in a session of its own: Ctrl-C of the terminal is for the chat
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*CHILD, *options, *(["--model", model] if model else [])],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if name != "PARLEY_API_KEY"},  # no setting
            start_new_session=True,
        ) as process,
    ):
        try:
            while not client.is_answering():
                check_running(process, log)
                time.sleep(POLL_S)
            yield
        finally:
            _stop(process)


def check_running(process: "subprocess.Popen[bytes]", log: Path) -> None:
    if process.poll() is not None:
        lines = log.read_text("utf-8", errors="replace").splitlines()
        reason = next((each for each in reversed(lines) if each.startswith("Error: ")), "")
        raise ChatError(f"The server did not start: {reason.removeprefix('Error: ') or f'see {log}'}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
