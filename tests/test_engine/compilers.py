"""Tests that compile."""

import os
from collections.abc import Callable
from pathlib import Path
from shutil import which

import pytest
from filelock import FileLock

from services.engine.cpu.compilation import Compilation
from services.engine.cpu.compiled_step import compile_to


# what torch's own compiler does while it is imported and run is not ours to mend
def needs_compiler(test: Callable[..., None]) -> Callable[..., None]:
    quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
    return pytest.mark.skipif(which("g++") is None, reason="no C++ compiler")(quiet(test))


def compiled_once(file: Path, make: Callable[[], None]) -> Path:
    """Made by the first of all workers and runs that needs it: the name is a digest of all that it depends on."""
    with FileLock(f"{file}.lock"):
        if not file.exists():
            make()
    os.utime(file)
    return file


def step_file(compilation: Compilation | None, model: object) -> Path:
    assert compilation is not None
    return compiled_once(compilation.file, lambda: compile_to(compilation.file, model, compilation.plan))
