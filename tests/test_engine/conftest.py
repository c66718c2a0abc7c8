from collections.abc import Iterator
from pathlib import Path

import pytest

from services.engine.cpu import kernels
from tests.threads import computing_with


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors as small as these are slower on several, and much slower beside other work."""
    with computing_with(1):
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is compiled in these tests, each thing once."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def native_kernel(folder: Path) -> None:
    library = kernels.library_path(folder)
    kernels.build(library)
    kernels.load(library)
