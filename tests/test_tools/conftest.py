from collections.abc import Iterator

import pytest

from tests.test_tools.wheels import Index, serving, wheel


@pytest.fixture
def index() -> Iterator[Index]:
    with serving(Index(wheel())) as index:
        yield index
