"""Memory and processors: what a device or a container leaves to a model."""

import os
from contextlib import suppress
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")


def cache_budget(device: torch.device, gpu_memory_utilization: float, cpu_memory_share: float) -> int:
    """Bytes for the KV cache after the weights are loaded: the rest of a share of a GPU's memory, which includes the
    weights, or a share of the free RAM."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(0, int(gpu_memory_utilization * total) - (total - free))
    return int(cpu_memory_share * free_ram())


def is_out_of_memory(error: RuntimeError) -> bool:
    """The CPU's allocator has no error class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


def free_ram() -> int:
    """Of the machine or of the container, whichever is less."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    with suppress(OSError, ValueError):  # no limit reads "max"
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        kept = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())["inactive_file"]
        free = min(free, limit - used + int(kept))  # the page cache is given up on demand
    return max(0, free)


def num_processors() -> int | None:
    """Whole processors of a container's CPU quota; None: no quota."""
    with suppress(OSError, ValueError):  # no limit reads "max"
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    with suppress(OSError, ValueError):  # an older kernel's way; no limit is -1
        quota, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return max(1, int(quota) // int(period)) if int(quota) > 0 else None
    return None
