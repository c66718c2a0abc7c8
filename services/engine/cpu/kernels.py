"""C++ kernels, compiled into one library on the machine that they run on: torch.ops.parley.

`attend` (attend.cpp) computes attention for any mix of prompts and decoded tokens in one call. torch's wants rows of
one length: it reads every sequence to the length of the longest, or is called for each of them. This one reads only
what each token attends to, twice as fast at that. Quantisation methods add theirs.
"""

import hashlib
import logging
import os
import platform
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from services.engine import quantization
from services.engine.cpu import bf16_linear
from services.engine.cpu.attention import Scoring
from services.engine.execution.kv_cache import SCALE_BYTES
from services.engine.loading import progress

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
PRECOMPILED = (
    "torch/library.h",
    "ATen/Parallel.h",
    "ATen/core/Tensor.h",
    "ATen/cpu/vec/functional.h",
    "ATen/cpu/vec/vec.h",
)
SOURCES = tuple(HERE / f"{name}.cpp" for name in ("attend", "bf16", "low_rank", "package", "round_rows"))
CPUINFO = Path("/proc/cpuinfo")


def sources() -> list[Path]:
    return [*SOURCES, *(source for module in quantization.kernel_modules() for source in module.KERNELS)]


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
    """A minute or more of a C++ compiler, one process at a time, unless it is there. It appears whole or not at all."""
    folder = target.with_suffix(".tmp").resolve()  # the compiler runs elsewhere
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.exists():
            return
        progress.report("compiling")
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        try:
            os.replace(compile_sources(folder), target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def compile_sources(folder: Path) -> str:
    """Torch's headers take ten seconds a source, which is most of the time: they are compiled once."""
    folder.mkdir(parents=True)
    prelude = folder / "prelude.h"
    prelude.write_text("".join(f"#include <{header}>\n" for header in PRECOMPILED))
    _built(prelude.name, [prelude], folder, precompiling=True)

    def compiled(source: Path) -> Path:
        return _built(source.stem, [source], folder, prelude, compile_only=True)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources()))
    return str(_built("kernels", objects, folder))


def _built(
    name: str,
    files: list[Path],
    folder: Path,
    prelude: Path | None = None,
    *,
    compile_only: bool = False,
    precompiling: bool = False,
) -> Path:
    from torch._inductor.cpp_builder import CppBuilder, CppTorchOptions
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    chosen = CppTorchOptions(
        vec_isa=pick_vec_isa(), warning_all=False, compile_only=compile_only, precompiling=precompiling
    )
    chosen.precompiled_header = str(prelude) if prelude else None
    builder = CppBuilder(name, [str(file) for file in files], chosen, output_dir=str(folder))
    builder.build()
    return Path(builder.get_target_file_path())


def ensure_loaded(folder: Path) -> None:
    library = library_path(folder)
    build(library)
    load(library)
    register_fakes()


def build_beside(folder: Path) -> None:
    """For the next start, on a thread of its own: requests come first."""

    def run() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # and with it of the compilers it starts
        try:
            build(library_path(folder))
        except Exception as error:  # whatever a machine without a compiler may lack
            logger.warning("no kernel can be compiled here: %s", str(error).splitlines()[:1])

    threading.Thread(target=run, name="kernels", daemon=True).start()


def try_to_load(folder: Path) -> None:
    """Nothing happens where they cannot be compiled, but a line in the log."""
    try:
        if not is_loaded():
            ensure_loaded(folder)
    except Exception as error:  # whatever a machine without a compiler may lack
        logger.warning("no kernel can be compiled here: %s", str(error).splitlines()[:1])


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
        plain: bool = False,
    ) -> Tensor:
        size = values.shape[3] - (SCALE_BYTES if values.dtype == torch.int8 else 0)
        return queries.new_empty(queries.shape[0], queries.shape[1], size)

    def rounded(rows: Tensor) -> Tensor:
        return rows.new_empty(*rows.shape[:-1], rows.shape[-1] + SCALE_BYTES, dtype=torch.int8)

    torch.library.register_fake("parley::attend", empty, allow_override=True)
    torch.library.register_fake("parley::round_rows", rounded, allow_override=True)
    bf16_linear.register_fakes()
    torch.library.register_fake("parley::add_low_rank", _like_out, allow_override=True)
    for module in quantization.kernel_modules():
        module.register_fakes()


def _like_out(out: Tensor, inputs: Tensor, site: int, is_head: bool) -> Tensor:
    return out.new_empty(out.shape)


def round_rows(rows: Tensor) -> Tensor:
    """[tokens, heads, size] in 8 bits, each row with its scale behind its numbers."""
    out: Tensor = torch.ops.parley.round_rows(rows)
    return out


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    begins: Tensor,
    ends: Tensor,
    scoring: Scoring,
    *,
    plain: bool = False,
) -> Tensor:
    """Token i of `queries` [tokens, heads, dim] sees positions begins[i] .. ends[i] of slot slots[i], which the window
    of `scoring` does not narrow. `plain`: 8-bit numbers without the instructions for them."""
    scale = queries.shape[-1] ** -0.5 if scoring.scale is None else scoring.scale
    sinks = None if scoring.sinks is None else scoring.sinks.float()
    out: Tensor = torch.ops.parley.attend(
        queries, keys, values, slots, begins, ends, scale, scoring.softcap or 0.0, sinks, plain
    )
    return out
