import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.threads import computing_with

pytest_plugins = ("tests.databases", "tests.apps", "tests.wheels")

# a busy machine is no failure, and our fixtures may be used again with the next example
settings.register_profile("parley", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("parley")

# the developer's own settings are not the tests'
for name in [name for name in os.environ if name.startswith("PARLEY_")]:
    del os.environ[name]


# workers side by side would compute with more threads than there are processors
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """A step of one token has hardly work for two, which beside other work wait for each other most of the time."""
    with computing_with(1):
        yield
