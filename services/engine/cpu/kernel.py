"""Operators of our own in C++, compiled on the machine they run on: torch.ops.parley.

`attend` (attend.cpp) is attention for any mix of prompts and answers in one call. torch's wants rows of one length: it
reads every sequence as far as the longest goes, or is called for each of them. This one reads what each token may see
and nothing else, twice as fast at that. `int8_linear` (int8.cpp) is a layer with weights of 8 bits.
"""

import hashlib
import os
import platform
import shutil
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

SOURCES = [Path(__file__).with_name(name) for name in ("attend.cpp", "int8.cpp", "package.cpp")]
HEADERS = [Path(__file__).with_name("vectors.h")]
CPUINFO = Path("/proc/cpuinfo")


def file(folder: Path) -> Path:
    facts = (*(source.read_bytes() for source in SOURCES + HEADERS), torch.__version__.encode(), machine().encode())
    return folder / f"attend-{hashlib.sha256(b'|'.join(facts)).hexdigest()[:16]}.so"


@cache
def machine() -> str:
    """What compiled code depends on: all that this CPU can do, because compilers are told to use it."""
    flags = ""
    if CPUINFO.exists():
        lines = CPUINFO.read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    known = " ".join(sorted(flags.partition(":")[2].split())) or platform.processor()
    return f"{platform.machine()} {known} {torch.backends.cpu.get_cpu_capability()}"


def build(target: Path) -> None:
    """Ten seconds of a C++ compiler, one process at a time, unless it is there. It appears whole or not at all."""
    folder = target.with_suffix(".tmp").resolve()  # the compiler runs elsewhere
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.exists():
            return
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        try:
            os.replace(_compiled(folder), target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _compiled(folder: Path) -> str:
    from torch._inductor.cpp_builder import CppBuilder, CppTorchOptions
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    options = CppTorchOptions(vec_isa=pick_vec_isa(), warning_all=False)
    builder = CppBuilder("attend", [str(source) for source in SOURCES], options, output_dir=str(folder))
    builder.build()
    return builder.get_target_file_path()


def get(folder: Path) -> None:
    library = file(folder)
    build(library)
    load(library)
    describe()


def load(library: Path) -> None:
    """Once a process: torch knows an operator by its name."""
    if not is_loaded():
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]


def is_loaded() -> bool:
    return hasattr(torch.ops.parley, "attend")


def has_int8() -> bool:
    """Not all processors can."""
    return hasattr(torch.ops.parley, "int8_linear")


def describe() -> None:
    """For torch.export: what comes out of it, without computing it."""

    def empty(
        queries: Tensor, keys: Tensor, values: Tensor, slots: Tensor, begins: Tensor, ends: Tensor, scale: float
    ) -> Tensor:
        return queries.new_empty(queries.shape[0], queries.shape[1], values.shape[3])

    def empty_outputs(inputs: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
        return inputs.new_empty(*inputs.shape[:-1], outputs)

    torch.library.register_fake("parley::attend", empty, allow_override=True)
    if has_int8():
        torch.library.register_fake("parley::int8_linear", empty_outputs, allow_override=True)


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, slots: Tensor, begins: Tensor, ends: Tensor, scale: float | None
) -> Tensor:
    """Token i of `queries` [tokens, heads, dim] sees positions begins[i] .. ends[i] of slot slots[i]."""
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    out: Tensor = torch.ops.parley.attend(queries, keys, values, slots, begins, ends, scale)
    return out
