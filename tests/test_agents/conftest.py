"""One service for all agents."""

from collections.abc import Iterator

import pytest

from tests.npm_packages import tokenizer
from tests.test_agents.service import Service, serving


@pytest.fixture(scope="session")
def shared_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    tokenizer("qwen3")  # or it is skipped here, and not in the other process
    with serving(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture
def service(shared_service: Service) -> Service:
    return shared_service.for_one_test()
