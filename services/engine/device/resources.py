"""Memory and processors: what a device or a container leaves to a model."""

from contextlib import suppress

import torch

from services.engine.device import ram


def cache_budget(device: torch.device, gpu_memory_utilization: float, cpu_memory_share: float) -> int:
    """Bytes for the KV cache after the weights are loaded: the rest of a share of a GPU's memory, which includes the
    weights, or a share of the free RAM."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(0, int(gpu_memory_utilization * total) - (total - free))
    return int(cpu_memory_share * ram.free_ram())


def is_out_of_memory(error: RuntimeError) -> bool:
    """The CPU's allocator has no error class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


def num_processors() -> int | None:
    """Whole processors of a container's CPU quota; None: no quota."""
    with suppress(OSError, ValueError):  # no limit reads "max"
        quota, period = (ram.CGROUP / "cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    with suppress(OSError, ValueError):  # an older kernel's way; no limit is -1
        quota, period = ((ram.CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return max(1, int(quota) // int(period)) if int(quota) > 0 else None
    return None
