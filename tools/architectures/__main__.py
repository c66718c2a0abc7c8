"""Tries architectures, each in a process of its own: `python -m tools.architectures --only llama --only mamba`.

Without `--only` all of them, which takes many minutes, and the table in docs/models.md is written anew.
"""

import logging
import multiprocessing
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
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
) -> None:
    """Try architectures: batched, one at a time, refused or wrong."""
    kinds = only or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    results = []
    for result in sweep(kinds, timeout):
        typer.echo(f"{result.kind:28} {result.outcome:14} {result.detail}")
        results.append(result)
    if not only:
        table.write(results)
    if any(result.outcome == Outcome.WRONG for result in results):
        raise typer.Exit(1)


def sweep(kinds: list[str], timeout: float = TIMEOUT) -> Iterator[Result]:
    """One after another. Each process is forked, because importing takes longer than most trials."""
    torch.set_num_threads(1)  # threads do not survive a fork
    context = multiprocessing.get_context("fork")
    for kind in kinds:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_attempt, args=(kind, sender))
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


def _attempt(kind: str, sender: Connection) -> None:
    warnings.simplefilter("ignore")
    logging.disable()
    sender.send(attempt(kind))


if __name__ == "__main__":
    typer.run(main)
