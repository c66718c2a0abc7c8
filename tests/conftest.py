import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.generated import THOROUGH
from tests.threads import computing_with

MODULES = ("databases", "apps", "wheels", "forked", "hub", "collector", "s3_server")
pytest_plugins = [f"tests.{name}" for name in MODULES]

# no deadline on busy machines; fixtures may be reused between examples
reused = [HealthCheck.function_scoped_fixture]
settings.register_profile("parley", max_examples=40, deadline=None, suppress_health_check=reused)
settings.register_profile(THOROUGH, settings.get_profile("parley"), max_examples=300)
settings.load_profile("parley")  # unless --hypothesis-profile names another

# tests must not read the developer's settings
for name in [name for name in os.environ if name.startswith(("PARLEY_", "OTEL_"))]:
    del os.environ[name]


# parallel workers would use more threads than processors
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """A one-token step has too little work for two threads, which would mostly wait for each other."""
    with computing_with(1):
        yield


@pytest.fixture
def no_headroom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are admitted though there is no room for their answers, so that sequences are preempted the sooner."""
    monkeypatch.setattr("services.engine.scheduling.scheduler.HEADROOM", 0)
