"""The GPU check runs on the CPU too, and notices wrong attention."""

import pytest
import torch

from services.engine.paged import attention as paged_attention
from tools.bench import gpu

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_runs_on_the_cpu_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--cpu"]) == 0

    output = capsys.readouterr().out
    assert "WRONG" not in output
    assert "batch 3" in output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_missing_gpu_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "no GPU" in capsys.readouterr().out


def test_wrong_window_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wider(*given: object) -> torch.Tensor:
        *rest, window = given
        return paged_attention.plain(*rest, window and window + 1)  # type: ignore[arg-type, operator]

    monkeypatch.setattr(gpu, "attend", wider)
    assert not gpu.attention_is_right(gpu.on_cpu())
