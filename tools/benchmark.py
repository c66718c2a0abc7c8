"""Servers side by side: `parley bench` asks each of them the same, in turns, and shows how fast they answered."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from itertools import product
from pathlib import Path
from typing import Annotated
from urllib.parse import urldefrag

import typer
from aiohttp import ClientError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tools.bench.exchange import session
from tools.bench.figures import add_up, figures
from tools.bench.load import ChatLoad, EmbeddingLoad, Load
from tools.bench.plot import draw
from tools.bench.report import machine, show, write
from tools.bench.rounds import Plan, Round, Target, run

HERE = "parley=http://127.0.0.1:8000/v1"
INTERRUPTED = 130  # as a shell reports SIGINT
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Unreachable(Exception):
    pass


@app.command()
def bench(
    target: Annotated[list[str], typer.Option(help="NAME=URL[#MODEL[+store]], URL ending in /v1; several.")] = [HERE],  # noqa: B006
    streams: Annotated[str, typer.Option(help="Requests at once.")] = "1,8,32",
    words: Annotated[str, typer.Option(help="Words of a prompt.")] = "16",
    tokens: Annotated[str, typer.Option(help="Tokens of an answer, at most.")] = "64",
    shared_prefix_words: Annotated[str, typer.Option(help="Words of a system message all prompts share.")] = "0",
    fixed_length: Annotated[bool, typer.Option(help="Ask for answers of exactly --tokens.")] = False,
    requests: Annotated[int, typer.Option(min=1, help="Requests of a round, at least one per stream.")] = 4,
    embeddings: Annotated[bool, typer.Option(help="Measure embeddings instead of chat.")] = False,
    texts: Annotated[int, typer.Option(min=1, help="Texts of a round of embeddings.")] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Texts of a request for embeddings.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count; one to warm up goes before them.")] = 5,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="The most a round may take; what is unfinished is cut off.")
    ] = 60,
    seed: Annotated[int, typer.Option(help="Another seed, other prompts: for servers that have answered these.")] = 0,
    output: Annotated[Path, typer.Option(help="Where .json and .png go, without the ending.")] = Path("build/bench"),
) -> None:
    """Measure OpenAI-compatible servers side by side. Where numbers are asked for, several may be given: 1,8,32."""
    loads: list[Load]
    if embeddings:
        loads = [EmbeddingLoad(each, texts, batch) for each in numbers(streams)]
    else:
        each_of = product(numbers(shared_prefix_words, least=0), numbers(words), numbers(tokens), numbers(streams))
        loads = [ChatLoad(n, max(n, requests), w, t, p, fixed_length) for p, w, t, n in each_of]
    plan = Plan([parse(each) for each in target], loads, rounds, seconds, seed)
    raise typer.Exit(measure(plan, output, Console()))


def numbers(text: str, least: int = 1) -> list[int]:
    try:
        found = [int(each) for each in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < least:
        raise typer.BadParameter(f"{text!r} is no list of numbers from {least} up, such as 1,8,32")
    return found


def parse(text: str) -> Target:
    name, _, address = text.partition("=")
    url, fragment = urldefrag(address)
    model, _, option = fragment.partition("+")
    if not url.startswith(("http://", "https://")):
        raise typer.BadParameter(f"{text!r} is not NAME=URL, such as {HERE}")
    if option not in ("", "store"):
        raise typer.BadParameter(f"'+{option}' is not +store")
    return Target(name, url.rstrip("/"), model or "default", store=option == "store")


def measure(plan: Plan, output: Path, console: Console) -> int:
    """Whatever ends the run, what was measured until then is shown and kept."""
    about, done, status = machine(), list[Round](), 0
    try:
        with Progress(*COLUMNS, console=console) as progress:
            asyncio.run(collect(plan, done, Notes(plan, progress)))
    except Unreachable as problem:
        console.print(f"[red]Error:[/red] {problem}")
        return 1
    except KeyboardInterrupt:
        console.print("Stopped: this is what was measured until then.")
        status = INTERRUPTED
    show(done, console)
    write(output.with_suffix(".json"), plan, done, about)
    if found := add_up(done):
        draw(output.with_suffix(".png"), found)
    console.print(f"Written: {output}.json, {output}.png", highlight=False)
    return status


async def collect(plan: Plan, done: list[Round], note: Callable[[Round], None]) -> None:
    await check(plan.targets)
    async with aclosing(run(plan)) as rounds:
        async for each in rounds:
            done.append(each)
            note(each)


async def check(targets: Sequence[Target]) -> None:
    async with session() as client:
        for target in targets:
            try:
                async with client.get(f"{target.url}/models", raise_for_status=True):
                    pass
            except ClientError as problem:
                raise Unreachable(f"{target.name} does not answer at {target.url}/models: {problem}") from problem


class Notes:
    """Moves the progress bar on by a round."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("checking targets", total=plan.steps)

    def __call__(self, last: Round) -> None:
        rate = f"{last.target} {figures([last]).rate:.0f} {last.load.unit}/s at {last.load.streams}"
        self._progress.update(self._task, advance=1, description=rate)
