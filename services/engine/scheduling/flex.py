"""Flex: sequences that run in what capacity the others leave, as those of batches do.

They give their places up to any other sequence, and pause while one of those waits for its first token. A step cannot
be broken off: one of theirs is kept short, because whoever comes meanwhile waits for its end.
"""

from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as List

from services.engine.scheduling.fairness import RoundRobin, SizeOf, preemption_victim, prefill_shares, victim
from services.engine.scheduling.sequence import Sequence

MAX_PAUSE = 64  # steps in a row: a flood of prompts must not stop them for ever
PREFILL_PART = 4  # they prefill this part of a step's token budget


def flex_of(sequences: List[Sequence]) -> list[Sequence]:
    return [each for each in sequences if each.job.flex]


def others_of(sequences: List[Sequence]) -> list[Sequence]:
    return [each for each in sequences if not each.job.flex]


def in_turn(turns: RoundRobin, waiting: List[Sequence], held: Counter[str]) -> Iterator[Sequence]:
    """Round-robin, as `RoundRobin.order`: first those that are not flex."""
    yield from turns.order(others_of(waiting), held)
    yield from turns.order(flex_of(waiting), held)


class Pause:
    def __init__(self) -> None:
        self._steps = 0

    def going_on(self, running: List[Sequence]) -> list[Sequence]:
        """Those of the running sequences that the next step computes."""
        others = others_of(running)
        if len(others) == len(running) or not any(map(_waits_for_its_first_token, others)):
            self._steps = 0
            return list(running)
        self._steps = (self._steps + 1) % (MAX_PAUSE + 1)
        return others if self._steps else list(running)


def _waits_for_its_first_token(sequence: Sequence) -> bool:
    return sequence.num_pending > 1 or not sequence.num_sampled


def yielding(running: List[Sequence], coming: Sequence, size: SizeOf) -> Sequence | None:
    """The sequence to be preempted for `coming`: for one that is not flex, flex ones first."""
    flex = flex_of(running)
    if coming.job.flex:
        return victim(flex, coming, size)
    return preemption_victim(flex, size) if flex else victim(running, coming, size)


def last_in_order(running: List[Sequence], size: SizeOf) -> Sequence:
    """The one to be preempted where the cache is full."""
    return preemption_victim(flex_of(running) or running, size)


def shares(prefilling: List[Sequence], left: int, budget: int) -> dict[Sequence, int]:
    """As `prefill_shares`, with flex sequences in what the others leave."""
    given = prefill_shares(others_of(prefilling), left)
    left -= sum(given.values())
    return given | prefill_shares(flex_of(prefilling), min(left, max(1, budget // PREFILL_PART)))
