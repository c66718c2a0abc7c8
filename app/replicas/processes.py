"""The processes of replicas: what each gets of the machine, and how it is started."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import socket


@dataclass(frozen=True, slots=True)
class Share:
    """Of one of several replicas."""

    cores: frozenset[int]  # empty: any
    environment: Mapping[str, str]


def shares(
    number: int, cores: Sequence[int], gpus: Sequence[str], *, memory_share: float, gpu_share: float, is_local: bool
) -> list[Share]:
    """`is_local`: the model computes in the replicas, which then have cores of their own, where there are enough.
    Replicas that share a GPU or the memory for the cache share it in equal parts."""
    found = []
    for index in range(number):
        if not is_local:
            found.append(Share(frozenset(), {}))
            continue
        environment = {"PARLEY_ENGINE__CPU_MEMORY_SHARE": f"{memory_share / number:.6f}"}
        if gpus:
            sharing = -(-number // len(gpus))
            environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
            environment["PARLEY_ENGINE__GPU_MEMORY_UTILIZATION"] = f"{gpu_share / sharing:.6f}"
        own = cores[index * len(cores) // number : (index + 1) * len(cores) // number]
        found.append(Share(frozenset(own), environment))
    return found


def gpus(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    if (named := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [each.strip() for each in named.split(",") if each.strip()]
    return sorted(path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*"))


def start(name: str, share: Share, end: socket) -> "subprocess.Popen[bytes]":
    """In a session of its own: signals of the terminal are for the front, which passes them on."""
    environment = {**os.environ, **share.environment, "REPLICA_NAME": name}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [*_import_paths(), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "app.replicas.replica", str(end.fileno())]
    process = subprocess.Popen(command, env=environment, pass_fds=[end.fileno()], start_new_session=True)
    if share.cores:
        with suppress(AttributeError, OSError):  # not Linux, or it is gone already
            os.sched_setaffinity(process.pid, share.cores)
    return process


def _import_paths() -> list[str]:
    """Of this package, and the working directory: specs and engines may be there."""
    return [str(Path(__file__).parents[2]), os.getcwd()]
