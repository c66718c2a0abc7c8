"""Opens torch's largest library beside the imports that come before torch's.

Python's own import keeps its lock while the dynamic linker maps, relocates and initialises a library, for torch's 0.2
to 0.4 s; opened by ctypes, other threads go on meanwhile, and torch's import then finds the library there.
"""

import ctypes
import threading
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from services.engine import reads_weights

LIBRARY, CUDA = "libtorch_cpu.so", "libtorch_cuda.so"


def open_early(engines: Iterable[str]) -> None:
    """On a thread of its own, if one of these engines computes here."""
    if any(map(reads_weights, engines)) and (library := torch_library()):
        threading.Thread(target=_open, args=(library,), name="early library", daemon=True).start()


def torch_library() -> Path | None:
    """None: torch is not installed so, or is built for CUDA, whose libraries it looks for in an order of its own."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "lib"
    return folder / LIBRARY if (folder / LIBRARY).exists() and not (folder / CUDA).exists() else None


def _open(library: Path) -> None:
    with suppress(OSError):  # which torch's import reports
        ctypes.CDLL(str(library))
