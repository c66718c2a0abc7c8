from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from services.engine import kernel


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors as small as these are slower on several, and much slower beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is compiled in these tests, each thing once."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def native_kernel(folder: Path) -> None:
    library = kernel.file(folder)
    kernel.build(library)
    kernel.load(library)
