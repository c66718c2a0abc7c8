"""The contract's own tests, unchanged, through a remote engine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PLUGIN = "tests.test_engine.test_remote.through_remote"
# they look at the jobs and errors of the engine itself, or wait for it and not for its client
OF_THE_ENGINE = (
    "test_all_that_are_served",
    "test_the_served_tier_is_reported",
    "test_prompt_too_long",
    "test_refused_request_stores_nothing",
    "TestAfterTheFirstByte",
    "TestClientGone and test_plain",
    "test_before_and_after_the_first_use",
    "test_a_request_that_comes_meanwhile",
)
OTHER_DATABASE = "postgresql"  # one is enough: no engine knows of them


@pytest.mark.extended
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["chat_controller", "idempotency", "client_methods"])
def test_the_contract_holds(name: str) -> None:
    left_out = " and ".join(f"not ({each})" for each in (*OF_THE_ENGINE, OTHER_DATABASE))
    command = [sys.executable, "-m", "pytest", "-q", "-p", PLUGIN, "-p", "no:cacheprovider", "-k", left_out]
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    found = subprocess.run(
        [*command, f"tests/test_controller/test_{name}.py"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout[-3000:]
