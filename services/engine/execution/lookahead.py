"""Lookahead: a step that begins with sampled tokens before they have come back from the device."""

from dataclasses import dataclass

from torch import Tensor

from services.engine.execution.executor import Executor
from services.engine.sampling.rows import select_rows
from services.engine.scheduling.scheduler import ScheduledSequence
from services.engine.scheduling.sequence import Sequence
from services.engine.scheduling.step import StepRow


@dataclass(frozen=True, slots=True)
class Lookahead:
    """A step that was executed before it was scheduled."""

    rows: dict[Sequence, int]  # its sequences, and the rows of their logits
    logits: Tensor
    preemptions: int  # until then; a sequence that is preempted later loses what the step wrote into its slot

    def split(self, scheduled: list[ScheduledSequence]) -> tuple[list[ScheduledSequence], list[ScheduledSequence]]:
        """The sequences that this step has computed, and the others."""
        computed = [entry for entry in scheduled if entry.sequence in self.rows]
        return computed, [entry for entry in scheduled if entry.sequence not in self.rows]


def launch(executor: Executor, sequences: list[Sequence], tokens: Tensor, preemptions: int) -> Lookahead | None:
    """Begins the next step of those sequences that have just got `tokens` and go on, as far as that is known without
    them."""
    if not executor.asynchronous or any(each.job.sampling.logprobs is not None for each in sequences):
        return None  # logprobs are computed from logits that would be overwritten
    rows = [row for row, each in enumerate(sequences) if _goes_on(each, executor.short_length)]
    continuing = [sequences[row] for row in rows]
    step_rows = [
        StepRow(each.job.id, each.slot, each.num_computed, 1, 1, (), each.images, each.is_long, each.adapter)
        for each in continuing
        if each.slot is not None
    ]
    logits = executor.execute_lookahead(step_rows, select_rows(tokens, rows)) if step_rows else None
    return (
        None if logits is None else Lookahead({each: row for row, each in enumerate(continuing)}, logits, preemptions)
    )


def _goes_on(sequence: Sequence, short_length: int | None) -> bool:
    """With one more token that is not known yet, and without being computed again because of it."""
    outgrows = short_length is not None and not sequence.is_long and len(sequence.tokens) >= short_length
    return sequence.num_left > 1 and not sequence.is_over and not outgrows
