"""A compiled step for rows that name adapters."""

from torch import Tensor

from services.engine.cpu.compiled_step import MIN_ROWS, CompiledStep, logits_indices
from services.engine.execution.kv_cache import SlotCache
from services.engine.lora.adapters import Adapters
from services.engine.lora.step_adapters import StepAdapters, forget_adapters
from services.engine.scheduling.step import StepRow


class AdaptedStep:
    """Its layers call the kernel, which is handed the adapters before each run."""

    def __init__(self, step: CompiledStep, adapters: Adapters, *, keeps: bool) -> None:
        """`keeps`: whether the head is given nothing but the tokens whose logits are wanted."""
        self._step = step
        self._adapters = adapters
        self._keeps = keeps

    def over(self, cache: SlotCache) -> "AdaptedStep":
        """The same with another memory."""
        return AdaptedStep(self._step.over(cache), self._adapters, keeps=self._keeps)

    def run(self, rows: list[StepRow]) -> Tensor:
        tokens = [row.adapter for row in rows for _ in range(row.num_tokens)]
        tokens += [None] * (MIN_ROWS - len(tokens))
        kept = logits_indices(rows)
        kept += [0] * (MIN_ROWS - len(kept))
        logits = [tokens[index] for index in kept] if self._keeps else tokens
        self._adapters.hand_over(StepAdapters(tuple(tokens), tuple(logits)))
        try:
            return self._step.run(rows)
        finally:
            forget_adapters()
