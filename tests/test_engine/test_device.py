"""What a container leaves of a machine."""

from pathlib import Path

import pytest
import torch

from services.engine.cpu import threads
from services.engine.device import ram, resources
from tests.threads import computing_with


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "350000 100000"}, 3),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
    ],
    ids=str,
)
def test_processors_of_a_container(
    files: dict[str, str], expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ram, "CGROUP", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")

    assert resources.num_processors() == expected


@pytest.mark.parametrize(
    ("allowed", "environment", "expected"), [(None, {}, 4), (8, {}, 4), (3, {}, 3), (3, {"OMP_NUM_THREADS": "4"}, 4)]
)
def test_threads_fit_the_container(
    allowed: int | None, environment: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "num_processors", lambda: allowed)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with computing_with(4):
        threads.fit_container()
        assert torch.get_num_threads() == expected
