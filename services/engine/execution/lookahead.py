"""A step that begins with tokens which only the device knows yet."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from services.engine.device.resources import is_out_of_memory
from services.engine.execution.runner import Runner
from services.engine.sampling.sampler import select_rows
from services.engine.scheduling.scheduler import ScheduledSequence
from services.engine.scheduling.sequence import Sequence

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lookahead:
    """A step that was begun before it was planned."""

    rows: dict[Sequence, int]  # whose tokens are in it, and their logits
    logits: Tensor
    preemptions: int  # until then: who loses its place has not what the step wrote there

    def splits(self, works: list[ScheduledSequence]) -> tuple[list[ScheduledSequence], list[ScheduledSequence]]:
        """Those that are in it, and the others."""
        begun = [work for work in works if work.sequence in self.rows]
        return begun, [work for work in works if work.sequence not in self.rows]


def launch(runner: Runner, sequences: list[Sequence], tokens: Tensor, preemptions: int) -> Lookahead | None:
    """Those who have just got `tokens` and will go on, as far as is known without them."""
    if not runner.asynchronous or any(each.job.sampling.logprobs is not None for each in sequences):
        return None  # those would be looked up in logits that do not last
    rows = [row for row, each in enumerate(sequences) if each.num_left > 1 and not each.is_over]
    going = [sequences[row] for row in rows]
    works = [ScheduledSequence(each, each.slot, 1) for each in going if each.slot is not None]
    logits = _run(runner, works, select_rows(tokens, rows)) if works else None
    return None if logits is None else Lookahead({each: row for row, each in enumerate(going)}, logits, preemptions)


def _run(runner: Runner, works: list[ScheduledSequence], tokens: Tensor) -> Tensor | None:
    """None also where it found no memory: it will be planned, and that may be tried in smaller steps."""
    try:
        return runner.run_lookahead(works, tokens)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("out of memory ahead of a step of %d sequences: %s", len(works), error)
    torch.cuda.empty_cache()
    return None
