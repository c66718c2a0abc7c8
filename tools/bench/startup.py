"""How long a start takes: `python -m tools.bench.startup`, or in turns with another build:
`python -m tools.bench.startup --command now=.venv/bin/parley --command before=../before/.venv/bin/parley`.

From the command until the port takes connections, and until the first token of a chat that is sent at once; in seconds,
and in seconds of CPU of the process, which other programs disturb less. Linux only.
"""

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tools.faults.postgres import free_port

PATIENCE_S = 300.0
POLL_S = 0.005
CHAT = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 1, "temperature": 0, "stream": True}


@dataclass(frozen=True, slots=True)
class Moment:
    """Since the command."""

    seconds: float
    cpu: float  # seconds of the process, all threads


@dataclass(frozen=True, slots=True)
class Start:
    port: Moment
    token: Moment


def medians(starts: Sequence[Start]) -> Start:
    return Start(_median([each.port for each in starts]), _median([each.token for each in starts]))


def _median(moments: Sequence[Moment]) -> Moment:
    return Moment(median(each.seconds for each in moments), median(each.cpu for each in moments))


def cpu_seconds(stat: str) -> float:
    """Of the text of /proc/PID/stat, where the program's name may have spaces and brackets."""
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def measure(program: str, options: Sequence[str], folder: Path) -> Start:
    port, began = free_port(), time.monotonic()
    with serving([program, "serve", "--port", str(port), *options], folder) as process:

        def now() -> Moment:
            stat = Path(f"/proc/{process.pid}/stat").read_text()
            return Moment(time.monotonic() - began, cpu_seconds(stat))

        _wait_for(port, process)
        listening = now()
        _wait_for_token(port)
        return Start(listening, now())


@contextmanager
def serving(command: Sequence[str], folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    environment = os.environ | {"PARLEY_DATABASE__URL": f"sqlite:///{folder / 'startup.db'}"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # compiling everything anew is no part of a start
    with (folder / "startup.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(POLL_S)
        else:
            return
    sys.exit("Error: the server has ended; `parley serve` says why")


def _wait_for_token(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("POST", "/v1/chat/completions", json.dumps(CHAT), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != http.client.OK:
        sys.exit(f"Error: {answer.status}: {answer.read().decode(errors='replace')}")
    next(line for line in answer if has_text(line))
    connection.close()


def has_text(line: bytes) -> bool:
    """Of a chunk; the first one has the role alone."""
    if not line.startswith(b"data: {"):
        return False
    choices = json.loads(line.removeprefix(b"data: "))["choices"]
    return any(each["delta"].get("content") for each in choices)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.startup", description="Measure starts, in turns.")
    parser.add_argument("--starts", type=int, default=5, help="of each; one to warm up goes before them")
    parser.add_argument("--command", action="append", metavar="NAME=PROGRAM", help="a `parley` (default: this one)")
    parser.add_argument("options", nargs="*", help="of `parley serve`, behind --")
    given = parser.parse_args()
    commands = given.command or [f"parley={Path(sys.executable).with_name('parley')}"]
    programs = dict(each.split("=", 1) for each in commands if "=" in each)
    if given.starts < 1 or len(programs) < len(commands):
        parser.error("--starts is at least 1, and each --command is NAME=PROGRAM with a name of its own")
    found: dict[str, list[Start]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(1 + given.starts):
            for name, program in programs.items():
                found[name].append(measure(program, given.options, Path(folder)))
    for name, starts in found.items():
        of = medians(starts[1:])
        print(f"{name}: port after {of.port.seconds:.2f} s ({of.port.cpu:.2f} s of CPU),", end=" ")
        print(f"first token after {of.token.seconds:.2f} s ({of.token.cpu:.2f} s of CPU); {given.starts} starts")


if __name__ == "__main__":
    main()
