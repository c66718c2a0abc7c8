import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from services.engine.cpu import kernels
from tests.threads import computing_with


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors as small as these are slower on several, and much slower beside other work."""
    with computing_with(1):
        yield


UNUSED_S = 7 * 24 * 3600.0


@pytest.fixture(scope="session")
def folder(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled steps and kernels, shared by all workers and kept between runs; their names are digests."""
    if pytestconfig.cache is None:
        return tmp_path_factory.mktemp("compiled")
    kept = pytestconfig.cache.mkdir("compiled")
    for file in kept.iterdir():
        with suppress(OSError):  # another worker does the same
            if file.is_file() and time.time() - file.stat().st_mtime > UNUSED_S:
                file.unlink()
    return kept


@pytest.fixture(scope="session")
def native_kernel(folder: Path) -> None:
    library = kernels.library_path(folder)
    kernels.build(library)
    os.utime(library)
    kernels.load(library)
