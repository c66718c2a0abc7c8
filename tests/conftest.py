import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ("tests.databases", "tests.apps")

# a busy machine is no failure, and our fixtures may be used again with the next example
settings.register_profile("parley", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("parley")

# the developer's own settings are not the tests'
for name in [name for name in os.environ if name.startswith("PARLEY_")]:
    del os.environ[name]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """A step of one token has hardly work for two, which beside other work wait for each other most of the time."""
    import torch  # takes a while, and few need it

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
