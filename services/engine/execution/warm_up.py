"""Steps for nobody, so that the first request does not pay for what is done at first use."""

from services.engine.base import Job
from services.engine.execution.runner import Runner
from services.engine.scheduling.scheduler import ScheduledSequence
from services.engine.scheduling.sequence import Sequence
from services.engine.scheduling.slots import ClearSlot


def warm_up(runner: Runner, max_tokens: int) -> None:
    """The largest prompt of one step, then a token in every slot, and in fewer; nothing of it is left behind."""
    prompt = min(max_tokens, runner.length - 1)
    runner.run([_work(0, prompt)])
    runner.change([ClearSlot(0, 0, prompt)])
    for size in reversed(runner.batch_sizes):  # the largest first: its memory serves the others
        runner.run([_work(slot, 1) for slot in range(size)])
    runner.change([ClearSlot(slot, 0, 1) for slot in range(runner.num_slots)])


def _work(slot: int, num_tokens: int) -> ScheduledSequence:
    return ScheduledSequence(Sequence(Job("warm-up", (0,) * num_tokens), 1), slot, num_tokens)
