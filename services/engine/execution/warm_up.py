"""Steps for nobody, so that the first request does not pay for what is done at first use."""

from services.engine.execution.runner import Runner
from services.engine.scheduling.step import ClearSlot, StepRow


def warm_up(runner: Runner, max_tokens: int) -> None:
    """The largest prompt of one step, then a token in every slot, and in fewer; nothing of it is left behind."""
    prompt = min(max_tokens, runner.length - 1)
    runner.run([_row(0, prompt)])
    runner.apply([ClearSlot(0, 0, prompt)])
    for size in reversed(runner.batch_sizes):  # the largest first: its memory serves the others
        runner.run([_row(slot, 1) for slot in range(size)])
    runner.apply([ClearSlot(slot, 0, 1) for slot in range(runner.num_slots)])


def _row(slot: int, num_tokens: int) -> StepRow:
    return StepRow("warm-up", slot, 0, num_tokens, 1, (0,) * num_tokens)
