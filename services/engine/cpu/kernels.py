"""C++ kernels, compiled into one library on the machine that they run on: torch.ops.parley.

`attend` (attend.cpp) computes attention for any mix of prompts and decoded tokens in one call. torch's wants rows of
one length: it reads every sequence to the length of the longest, or is called for each of them. This one reads only
what each token attends to, twice as fast at that. Quantisation methods add theirs.
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

from services.engine import quantization
from services.engine.cpu.attention import Scoring

HERE = Path(__file__).parent
SOURCES = (HERE / "attend.cpp", HERE / "package.cpp")
CPUINFO = Path("/proc/cpuinfo")


def sources() -> list[Path]:
    return [*SOURCES, *(source for method in quantization.methods() for source in method.KERNELS)]


def digests() -> list[str]:
    """Of all sources and of the headers beside them."""
    found = sources()
    headers = sorted({header for folder in {source.parent for source in found} for header in folder.glob("*.h")})
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in [*found, *headers]]


def library_path(folder: Path) -> Path:
    facts = "|".join([*digests(), torch.__version__, machine()])
    return folder / f"kernels-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.so"


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
    builder = CppBuilder("kernels", [str(source) for source in sources()], options, output_dir=str(folder))
    builder.build()
    return builder.get_target_file_path()


def ensure_loaded(folder: Path) -> None:
    library = library_path(folder)
    build(library)
    load(library)
    register_fakes()


def load(library: Path) -> None:
    """Once a process: torch knows an operator by its name."""
    if not is_loaded():
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]


def is_loaded() -> bool:
    return hasattr(torch.ops.parley, "attend")


def register_fakes() -> None:
    """Describes the operators to `torch.export`."""

    def empty(
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        begins: Tensor,
        ends: Tensor,
        scale: float,
        softcap: float,
        sinks: Tensor | None,
    ) -> Tensor:
        return queries.new_empty(queries.shape[0], queries.shape[1], values.shape[3])

    torch.library.register_fake("parley::attend", empty, allow_override=True)
    for method in quantization.methods():
        method.register_fakes()


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, slots: Tensor, begins: Tensor, ends: Tensor, scoring: Scoring
) -> Tensor:
    """Token i of `queries` [tokens, heads, dim] sees positions begins[i] .. ends[i] of slot slots[i], which the window
    of `scoring` does not narrow."""
    scale = queries.shape[-1] ** -0.5 if scoring.scale is None else scoring.scale
    sinks = None if scoring.sinks is None else scoring.sinks.float()
    out: Tensor = torch.ops.parley.attend(
        queries, keys, values, slots, begins, ends, scale, scoring.softcap or 0.0, sinks
    )
    return out
