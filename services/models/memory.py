"""The memory that is free for models on this machine, without torch."""

import shutil
import subprocess
from dataclasses import dataclass
from typing import Literal

from services.engine.device.ram import free_ram


@dataclass(frozen=True, slots=True)
class Memory:
    free: int  # bytes that weights and KV cache may take
    share: float  # of what the weights leave, for the KV cache
    where: Literal["RAM", "GPU memory"]


def free_memory(device: str, *, gpu_share: float, cpu_share: float) -> Memory:
    """As the settings divide it. Blocking."""
    gpu = None if device == "cpu" else _free_gpu_memory()
    if gpu is None:
        return Memory(free_ram(), cpu_share, "RAM")
    return Memory(int(gpu * gpu_share), 1.0, "GPU memory")


def _free_gpu_memory() -> int | None:
    """Of the first one; None: there is none."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    found = run.stdout.split()
    return int(found[0]) * 2**20 if run.returncode == 0 and found and found[0].isdigit() else None
