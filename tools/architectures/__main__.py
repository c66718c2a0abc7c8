"""Tries architectures, each in a process of its own: `python -m tools.architectures --only llama --only mamba`.

Without `--only` all of them, which takes many minutes, and the table in docs/models.md is written anew. `--results`
keeps what was found in a file, so that a run which was stopped goes on where it was.
"""

import json
import logging
import multiprocessing
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tools.architectures import table
from tools.architectures.trial import Outcome, Result, attempt

TIMEOUT = 120  # seconds for one architecture


def main(
    only: Annotated[list[str] | None, typer.Option(help="A kind of model, as its config.json names it.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for each.")] = TIMEOUT,
    half: Annotated[bool, typer.Option(help="In bfloat16; the table is not written.")] = False,
    results: Annotated[Path | None, typer.Option(help="A file of results: those in it are not tried again.")] = None,
) -> None:
    """Try architectures: batched, one at a time, refused or wrong."""
    kinds = only or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    found = {result.kind: result for result in read_results(results)} if results else {}
    for result in sweep(
        [kind for kind in kinds if kind not in found], timeout, torch.bfloat16 if half else torch.float32
    ):
        typer.echo(f"{result.kind:28} {result.outcome:14} {result.detail}")
        found[result.kind] = result
        if results:
            append_result(results, result)
    if not only and not half:
        table.write(found.values())
    if any(result.outcome == Outcome.WRONG for result in found.values()):
        raise typer.Exit(1)


def read_results(file: Path) -> list[Result]:
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    given = [json.loads(line) for line in lines]
    return [Result(each["kind"], Outcome(each["outcome"]), each["detail"]) for each in given]


def append_result(file: Path, result: Result) -> None:
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(result)) + "\n")


def sweep(kinds: list[str], timeout: float = TIMEOUT, dtype: torch.dtype = torch.float32) -> Iterator[Result]:
    """One after another. Each process is forked, because importing takes longer than most trials."""
    torch.set_num_threads(1)  # threads do not survive a fork
    context = multiprocessing.get_context("fork")
    for kind in kinds:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_attempt, args=(kind, dtype, sender))
        process.start()
        sender.close()
        yield _result(kind, receiver, timeout)
        process.kill()
        process.join()


def _result(kind: str, receiver: Connection, timeout: float) -> Result:
    try:
        found = receiver.recv() if receiver.poll(timeout) else Result(kind, Outcome.UNTRIED, f"over {timeout:.0f} s")
    except EOFError:
        return Result(kind, Outcome.UNTRIED, "its process died")
    assert isinstance(found, Result)
    return found


def _attempt(kind: str, dtype: torch.dtype, sender: Connection) -> None:
    warnings.simplefilter("ignore")
    logging.disable()
    sender.send(attempt(kind, dtype))


if __name__ == "__main__":
    typer.run(main)
