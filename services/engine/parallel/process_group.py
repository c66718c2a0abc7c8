"""TorchGroup: torch's own communication, NCCL between GPUs, and gloo on a CPU without a C++ compiler.

The ranks find each other by a file; they listen on the loopback interface alone.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore, ProcessGroupGloo, Store

from services.engine.parallel.group import GroupAborted

TIMEOUT = timedelta(minutes=30)  # a rank waits for the slowest one to load
LOOPBACK = "lo"


@dataclass(frozen=True, slots=True)
class TorchPlan:
    store: str  # a file that does not exist yet
    device: str  # torch's device type

    def join(self, rank: int, size: int) -> "TorchGroup":
        backend = _backend(FileStore(self.store, size), self.device, rank, size)
        return TorchGroup(backend, rank, size, can_abort=self.device == "cuda")


class TorchGroup:
    """`can_abort`: gloo cannot, and notices by itself that a connection is closed."""

    def __init__(self, backend: Any, rank: int, size: int, *, can_abort: bool) -> None:
        self.rank = rank
        self.size = size
        self._backend = backend
        self._can_abort = can_abort
        self._is_aborted = False

    def sum(self, values: Tensor) -> Tensor:
        values = values.contiguous()
        self._finish(lambda: self._backend.allreduce([values]))
        return values

    def gather(self, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(self.size)]
        self._finish(lambda: self._backend.allgather([parts], [values.contiguous()]))
        return torch.cat(parts, dim=-1)

    def abort(self) -> None:
        self._is_aborted = True
        if self._can_abort:
            self._backend.abort()

    def _finish(self, begin: Callable[[], Any]) -> None:
        if self._is_aborted:
            raise GroupAborted("another rank is gone")
        try:
            begin().wait()
        except RuntimeError as error:
            raise GroupAborted(f"the ranks have lost each other: {error}") from error


def _backend(store: Store, device: str, rank: int, size: int) -> Any:
    if device == "cuda":
        os.environ.setdefault("NCCL_SOCKET_IFNAME", LOOPBACK)
        os.environ.setdefault("NCCL_GRAPH_MIXING_SUPPORT", "0")  # all that is recorded is replayed in one order
        return dist.ProcessGroupNCCL(store, rank, size, dist.ProcessGroupNCCL.Options())
    gloo: Any = ProcessGroupGloo  # whose options torch does not describe
    options = gloo._Options()
    options._devices = [gloo.create_device(interface=LOOPBACK)]
    options._timeout = TIMEOUT
    return gloo(store, rank, size, options)
