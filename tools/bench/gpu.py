"""What only a GPU can show: `python -m tools.bench.gpu`.

First whether torch's attention over pages comes to what plain lines come to, and whether pages and recorded steps say
what models say by themselves, across pages, windows and groups of heads. Then the time of a decoding step of an
8B-shaped Llama with random weights, and how near that is to reading the weights and the cache once at the memory's own
speed.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from services.engine.base import Job, SamplingParams
from services.engine.execution.runner import Runner
from services.engine.execution.runner_check import LogitsDiffer, make_check, verify_logits
from services.engine.execution.runner_factory import build_runner
from services.engine.paged.attention import PAGE_SIZE, PagedRows, attend, plain
from services.engine.paged.graphs import call_again
from services.engine.paged.runner import PagedRunner, PagingConfig
from services.engine.sampling.sampler import sample
from services.engine.scheduling.scheduler import ScheduledSequence
from services.engine.scheduling.sequence import Sequence

STEPS = (PAGE_SIZE + 44, 3, PAGE_SIZE + 9, *[1] * 6)  # tokens: into a second page, and into a third one while writing
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "vocab_size": 1000,
    "initializer_range": 0.06,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "groups of heads": ("llama", {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32}),
    "no groups": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64}),
    "wide heads": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256}),
    "a window": (
        "mistral",
        {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32, "sliding_window": 100},
    ),
}
LARGE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
TOLERANCE = 0.03  # of numbers around 1, in halves
PROMPT = 128  # tokens
TIMED = 64  # steps
BATCHES = (1, 64)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything small for a trial on the CPU."""

    device: torch.device
    dtype: torch.dtype
    large: dict[str, Any]
    batches: tuple[int, ...]
    timed: int
    copied: int  # bytes, to measure the memory's speed

    @property
    def paging(self) -> PagingConfig | None:
        return None if self.device.type == "cuda" else PagingConfig(PAGE_SIZE, call_again)


def on_gpu() -> Plan:
    return Plan(torch.device("cuda"), torch.bfloat16, LARGE, BATCHES, TIMED, copied=2**32)


def on_cpu() -> Plan:
    large = LARGE | SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2}
    return Plan(torch.device("cpu"), torch.float32, large, (1, 3), 3, copied=2**20)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="try the script itself, with small models")
    plan = on_cpu() if parser.parse_args(arguments).cpu else on_gpu()
    if plan.device.type == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here")
        return 2
    right = [attention_is_right(plan), *(is_right(name, plan) for name in MODELS)]
    measure(plan)
    return 0 if all(right) else 1


# --- right ---


def attention_is_right(plan: Plan) -> bool:
    """Against the plain lines, on the same device."""
    wrong = [
        f"{heads} heads of {dim}, window {window}, {steps}: {difference:.3f}"
        for heads, dim in ((2, 64), (8, 128), (16, 256), (6, 32))
        for window in (None, 1, 100, 300)
        for steps in ([(1, 1), (1, 256), (1, 700)], [(5, 5), (1, 257), (300, 600)], [(1, 300)])
        if not (difference := attention_differs(heads, dim, window, steps, plan)) < TOLERANCE
    ]
    print("attention:", "\n".join(["WRONG", *wrong]) if wrong else "right")
    return not wrong


def attention_differs(heads: int, dim: int, window: int | None, steps: list[tuple[int, int]], plan: Plan) -> float:
    """By how much, at most. `steps`: new tokens, and all of them, of each sequence."""
    torch.manual_seed(0)
    kind: dict[str, Any] = {"device": plan.device, "dtype": plan.dtype}
    keys, values = (torch.randn(9, PAGE_SIZE, 2, dim, **kind) for _ in range(2))
    queries = torch.randn(sum(new for new, _ in steps), heads, dim, **kind)

    def ints(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=plan.device)

    new, lengths = ([step[index] for step in steps] for index in (0, 1))
    table = ints([3, 1, 8, 5, 0, 2, 4, 7, 6]).view(3, 3)[: len(steps)]
    starts, ends = (ints(list(accumulate(each, initial=0))) for each in (new, lengths))
    rows = PagedRows(starts, ends, ints(lengths), table, max(new), 3 * PAGE_SIZE)
    out, expected = (function(queries, keys, values, rows, None, window) for function in (attend, plain))
    return float((out.float() - expected.float()).abs().max())


def is_right(name: str, plan: Plan) -> bool:
    kind, options = MODELS[name]
    model = random_model(kind, {**SMALL, **options}, plan)
    check = make_check(model, STEPS)  # before its attention is changed
    runner = build_runner(model, num_slots=4, length=2 * len(check.prompt), budget=2**30, paging=plan.paging)
    try:
        verify_logits(paged(runner).another(len(check.prompt)), check)
    except LogitsDiffer as reason:
        print(f"{name}: WRONG, {reason}")
        return False
    print(f"{name}: right")
    return True


def paged(runner: Runner) -> PagedRunner:
    if not isinstance(runner, PagedRunner):
        raise SystemExit("no pages here: the log above says why")
    if runner.asynchronous and not runner.records:
        raise SystemExit("steps are not recorded here: the log above says why")
    return runner


def random_model(kind: str, options: dict[str, Any], plan: Plan) -> Any:
    torch.manual_seed(0)
    with plan.device:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options), dtype=plan.dtype)
    return model.eval()


# --- fast ---


def measure(plan: Plan) -> None:
    model = random_model("llama", plan.large, plan)
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    weights -= model.get_input_embeddings().weight.numel() * plan.dtype.itemsize  # of which a step reads a few rows
    length = 4 * PAGE_SIZE
    size = max(plan.batches)
    runner = paged(build_runner(model, num_slots=size, length=length, budget=2**36, paging=plan.paging))
    speed = memory_speed(plan)
    print(f"memory: {speed / 1e9:.0f} GB/s; weights of a step: {weights / 1e9:.2f} GB")
    for batch in plan.batches:
        seconds = step_time(runner, batch, plan)
        read = weights + batch * runner.token_bytes * (PROMPT + plan.timed // 2)
        print(
            f"batch {batch}: {1000 * seconds:.2f} ms a step, {batch / seconds:.0f} tok/s, "
            f"{read / seconds / speed:.0%} of the memory's speed"
        )


def step_time(runner: PagedRunner, batch: int, plan: Plan) -> float:
    """With all that a token costs but its text: sampled tokens come back, the next step is written down."""
    params = SamplingParams(temperature=0)
    sequences = [Sequence(Job("timed", tuple(range(slot, slot + PROMPT)), params), 10**6) for slot in range(batch)]
    for slot, sequence in enumerate(sequences):
        advance(runner, [ScheduledSequence(sequence, slot, PROMPT)])

    def step() -> None:
        advance(runner, [ScheduledSequence(sequence, slot, 1) for slot, sequence in enumerate(sequences)])

    step()  # is recorded
    return timed(step, plan.timed)


def advance(runner: PagedRunner, scheduled: list[ScheduledSequence]) -> None:
    sampled = sample(runner.run([entry.row() for entry in scheduled]), [entry.sequence for entry in scheduled])
    for entry, token in zip(scheduled, sampled, strict=True):
        entry.sequence.num_computed += entry.num_tokens
        entry.sequence.tokens.append(token or 0)


def memory_speed(plan: Plan) -> float:
    """Bytes a second, read or written, of a copy."""
    source = torch.ones(plan.copied, dtype=torch.uint8, device=plan.device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        if plan.device.type == "cuda":
            torch.cuda.synchronize()

    copy()
    return 2 * plan.copied / timed(copy, 10)


def timed(function: Callable[[], None], times: int) -> float:
    """Seconds of one, of which each waits for its own end."""
    began = time.perf_counter()
    for _ in range(times):
        function()
    return (time.perf_counter() - began) / times


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
