"""Keeps the pickled steps of a run, and plays them again on another executor."""

import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from services.engine.execution.executor import Executor
from services.engine.scheduling.step import Step, StepRow


@dataclass(frozen=True, slots=True)
class LoggedStep:
    pickled: bytes  # a Step, or the rows and the tokens of a lookahead
    logits: Tensor | None

    @property
    def content(self) -> Any:
        return pickle.loads(self.pickled)


class LoggingExecutor:
    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.log: list[LoggedStep] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def execute(self, step: Step) -> Tensor:
        pickled = pickle.dumps(step)
        logits = self._executor.execute(step)
        self.log.append(LoggedStep(pickled, logits.clone()))  # they last until the next step
        return logits

    def execute_lookahead(self, rows: list[StepRow], tokens: Tensor) -> Tensor | None:
        pickled = pickle.dumps((rows, tokens.tolist()))
        logits = self._executor.execute_lookahead(rows, tokens)
        self.log.append(LoggedStep(pickled, None if logits is None else logits.clone()))
        return logits


def replay(log: list[LoggedStep], executor: Executor) -> None:
    """Raises AssertionError where logits differ."""
    for step in log:
        match step.content:
            case Step() as content:
                logits = executor.execute(content)
            case rows, tokens:
                logits = executor.execute_lookahead(rows, torch.tensor(tokens))
        if step.logits is None or logits is None:
            assert step.logits is logits
        else:
            torch.testing.assert_close(logits, step.logits, rtol=0, atol=0)
