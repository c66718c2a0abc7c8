"""OpenMP's teams are let go of by whoever has nothing to compute."""

import sys
from pathlib import Path

import pytest
import torch

from services.engine import threads
from services.engine.threads import release_team


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def num_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads by /proc")
def test_a_team_ends_and_comes_back(two_threads: None) -> None:
    matrix = torch.ones(512, 512)
    release_team()
    without = num_threads()
    expected = (matrix @ matrix).sum()
    if num_threads() == without:
        pytest.skip("this torch computes without a team of OpenMP")
    release_team()
    assert num_threads() == without
    assert (matrix @ matrix).sum() == expected


def test_another_openmp_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_libgomp", lambda: None)
    release_team()
