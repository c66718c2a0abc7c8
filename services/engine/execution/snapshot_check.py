"""Whether a model goes on from a snapshot exactly as it does without: only the same bits are the same answer."""

import torch
from torch import Tensor

from services.engine.execution.runner import Runner
from services.engine.execution.runner_check import LogitsDiffer
from services.engine.scheduling.step import ClearSlot, DropSnapshot, RestoreSnapshot, SaveSnapshot, StepRow

TRIAL_CHUNK = 4  # tokens
TRIAL_LENGTH = 11


def verify_snapshots(runner: Runner, prompt: tuple[int, ...]) -> None:
    """`runner`: its chunks are of TRIAL_CHUNK tokens; `prompt`: of TRIAL_LENGTH. Raises LogitsDiffer."""
    saves = SaveSnapshot(0, TRIAL_CHUNK, None), SaveSnapshot(1, 2 * TRIAL_CHUNK, 0)
    expected = _go_on(runner, prompt, 0, saves)
    runner.apply([RestoreSnapshot(0, 0)])
    once = _go_on(runner, prompt, TRIAL_CHUNK)
    runner.apply([DropSnapshot(0, keeps_tokens=True)])
    for _ in range(2):  # what goes on from it leaves it as it was
        runner.apply([RestoreSnapshot(1, 0)])
        again = _go_on(runner, prompt, 2 * TRIAL_CHUNK)
        if not (torch.equal(once, expected) and torch.equal(again, expected)):
            raise LogitsDiffer("behind a snapshot its logits are not the same bits")


def _go_on(runner: Runner, prompt: tuple[int, ...], start: int, saves: tuple[SaveSnapshot, ...] = ()) -> Tensor:
    """The logits behind the prompt and behind one more token."""
    end = len(prompt)
    read = runner.run([StepRow("check", 0, start, end - start, 1, prompt[start:], saves=saves)]).clone()
    decoded = runner.run([StepRow("check", 0, end, 1, 1, prompt[:1])])
    runner.apply([ClearSlot(0, 0, end + 1)])
    return torch.cat([read, decoded])
