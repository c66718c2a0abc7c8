"""Torch's library is opened ahead of torch, for engines that compute here only."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from services.engine import early_library

ROOT = Path(__file__).parents[2]


def test_torch_is_imported_as_before_beside_it_and_after_it() -> None:
    code = (
        "import sys, threading\nfrom services.engine import early_library\n"
        "early_library.open_early(['remote', 'local']); assert 'torch' not in sys.modules\n"
        "import torch; print(torch.ones(2, 2).matmul(torch.ones(2, 2)).sum().item())"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "8.0"), run.stderr


def test_nothing_is_opened_for_other_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", started.append)
    early_library.open_early(["remote", "examples.echo_engine:EchoEngine"])
    assert not started


def test_a_torch_for_cuda_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "lib" / early_library.LIBRARY).touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert early_library.torch_library() == tmp_path / "torch" / "lib" / early_library.LIBRARY
    (tmp_path / "torch" / "lib" / early_library.CUDA).touch()
    assert early_library.torch_library() is None
