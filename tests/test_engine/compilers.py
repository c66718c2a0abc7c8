"""Tests that compile."""

from collections.abc import Callable
from shutil import which

import pytest


# what torch's own compiler does while it is imported and run is not ours to mend
def needs_compiler(test: Callable[..., None]) -> Callable[..., None]:
    quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
    return pytest.mark.skipif(which("g++") is None, reason="no C++ compiler")(quiet(test))
