"""The order of a run: targets in turns, round by round, so that noise of the machine affects all."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from tools.bench.answer import Answer
from tools.bench.load import Load
from tools.bench.turn import Target, Turn


@dataclass(frozen=True, slots=True)
class Plan:
    targets: Sequence[Target]
    loads: Sequence[Load]
    rounds: int  # that count, after one warm-up round
    seconds: float  # limit of a round
    seed: int

    @property
    def steps(self) -> int:
        return len(self.targets) * len(self.loads) * (self.rounds + 1)


@dataclass(frozen=True, slots=True)
class Round:
    target: str
    load: Load
    number: int  # 0: the warm-up
    seconds: float
    answers: list[Answer]

    @property
    def counts(self) -> bool:
        return self.number > 0


async def run(plan: Plan) -> AsyncGenerator[Round]:
    async with AsyncExitStack() as stack:
        opened = [(each.name, await stack.enter_async_context(each.opened())) for each in plan.targets]
        for load in plan.loads:
            for number in range(plan.rounds + 1):
                turn = Turn(load, plan.seed, number, plan.seconds)
                for name, target in opened:
                    played = await target.play(turn)
                    yield Round(name, load, number, played.seconds, played.answers)
