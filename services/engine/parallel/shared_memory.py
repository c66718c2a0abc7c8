"""SharedMemoryGroup: sums on the CPU in memory that all ranks have mapped (shared_memory.cpp).

A sum of one token's hidden state takes some microseconds; gloo, over loopback, some hundred.
"""

import ctypes
import hashlib
import mmap
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from services.engine.cpu.kernels import machine
from services.engine.parallel.group import GroupAborted

SOURCE = Path(__file__).with_name("shared_memory.cpp")
CAPACITY = 2**20  # bytes of a buffer; larger tensors are exchanged in parts, which stay in the processor's cache
FLAGS = ("-O3", "-march=native", "-std=c++20", "-fPIC", "-shared")
DTYPES = (torch.float32, torch.bfloat16)  # others are added as float32


class NoCompiler(Exception): ...


@dataclass(frozen=True, slots=True)
class SharedMemoryPlan:
    library: Path
    fd: int  # of the memory, inherited

    def join(self, rank: int, size: int) -> "SharedMemoryGroup":
        return SharedMemoryGroup(self.library, self.fd, rank, size)


def shared_memory(folder: Path, size: int) -> SharedMemoryPlan:
    """Memory for so many ranks. `folder`: where the library is, or is put. Raises NoCompiler."""
    library = build(folder)
    fd = os.memfd_create("parley")
    os.ftruncate(fd, _load(library).parley_bytes(size, CAPACITY))
    return SharedMemoryPlan(library, fd)


class SharedMemoryGroup:
    def __init__(self, library: Path, fd: int, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self._library = _load(library)
        self._memory = mmap.mmap(fd, self._library.parley_bytes(size, CAPACITY))
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def sum(self, values: Tensor) -> Tensor:
        if values.dtype not in DTYPES:
            return self.sum(values.float()).to(values.dtype)
        values = values.contiguous()
        is_bfloat16 = values.dtype == torch.bfloat16
        failed = self._library.parley_sum(
            self._address, self.rank, self.size, CAPACITY, values.data_ptr(), values.numel(), is_bfloat16
        )
        return self._checked(failed, values)

    def gather(self, values: Tensor) -> Tensor:
        values = values.contiguous()
        *rows, width = values.shape
        out = values.new_empty(*rows, self.size * width)
        num_bytes = width * values.element_size()
        failed = self._library.parley_gather(
            self._address,
            self.rank,
            self.size,
            CAPACITY,
            values.data_ptr(),
            out.data_ptr(),
            values.numel() // max(1, width),
            num_bytes,
        )
        return self._checked(failed, out)

    def abort(self) -> None:
        self._library.parley_abort(self._address)

    def _checked(self, failed: int, out: Tensor) -> Tensor:
        if failed:
            self.abort()
            raise GroupAborted("another rank is gone" if failed == 1 else "the ranks compute different things")
        return out


def build(folder: Path) -> Path:
    """A second of a C++ compiler, unless the library is there. It appears whole or not at all."""
    facts = "|".join([SOURCE.read_text(), *FLAGS, machine()])
    target = folder / f"ranks-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            _compile(target)
    return target


def _compile(target: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise NoCompiler("there is no C++ compiler")
    unfinished = target.with_suffix(".tmp")
    command = [compiler, *FLAGS, "-o", str(unfinished), str(SOURCE)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoCompiler(str(getattr(error, "stderr", "") or error).strip().splitlines()[-1]) from error
    os.replace(unfinished, target)


@cache
def _load(library: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    address, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    loaded.parley_bytes.argtypes, loaded.parley_bytes.restype = [number, size], size
    loaded.parley_sum.argtypes = [address, number, number, size, address, size, number]
    loaded.parley_gather.argtypes = [address, number, number, size, address, address, size, size]
    loaded.parley_abort.argtypes = [address]
    return loaded
