"""`parley bench`: measures servers side by side with the same requests, in turns."""

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from itertools import product
from pathlib import Path
from typing import Annotated
from urllib.parse import urldefrag

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tools.bench.batch import Batches
from tools.bench.figures import add_up, figures
from tools.bench.library import Library
from tools.bench.load import ChatLoad, EmbeddingLoad, Load
from tools.bench.plot import draw
from tools.bench.report import machine, show, write
from tools.bench.rounds import Plan, Round, run
from tools.bench.server import Server
from tools.bench.turn import Target, Unreachable

HERE = "parley=http://127.0.0.1:8000/v1"
BATCH = "batch:"
LIBRARY = "sentence-transformers:"
CHAT, EMBEDDINGS = "Chat", "Embeddings"
EXAMPLES = (
    f"[bold]parley bench --target {HERE} --target vllm=http://127.0.0.1:8001/v1 --fixed-length[/bold]\n\n"
    "[bold]parley bench --embeddings --streams 16 --target st=sentence-transformers:models/all-MiniLM-L6-v2 "
    f"--target {HERE} --python venv/bin/python[/bold]"
)
INTERRUPTED = 130  # the shell's code for SIGINT
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


@app.command(epilog=EXAMPLES)
def bench(
    target: Annotated[
        list[str],
        typer.Option(
            help="A server: NAME=URL[#MODEL[,MODEL...][+store]], URL ending in /v1. Several models are asked "
            "in turn. NAME=batch:URL asks by one batch a round. Give several targets to compare them.",
            metavar="TARGET",
        ),
    ] = [HERE],  # noqa: B006
    api_key: Annotated[
        list[str], typer.Option(help="NAME=KEY, for a target that asks for one.", metavar="NAME=KEY")
    ] = [],  # noqa: B006
    streams: Annotated[str, typer.Option(help="Requests at once.", metavar="N,N...")] = "1,8,32",
    words: Annotated[str, typer.Option(help="Words of a prompt.", metavar="N,N...", rich_help_panel=CHAT)] = "16",
    tokens: Annotated[
        str, typer.Option(help="Tokens of an answer, at most.", metavar="N,N...", rich_help_panel=CHAT)
    ] = "64",
    shared_prefix_words: Annotated[
        str, typer.Option(help="Words of a system message all prompts share.", metavar="N,N...", rich_help_panel=CHAT)
    ] = "0",
    fixed_length: Annotated[
        bool, typer.Option("--fixed-length", help="Ask for answers of exactly --tokens.", rich_help_panel=CHAT)
    ] = False,
    requests: Annotated[
        int, typer.Option(min=1, help="Requests of a round, at least one per stream.", rich_help_panel=CHAT)
    ] = 4,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Measure embeddings instead of chat.", rich_help_panel=EMBEDDINGS)
    ] = False,
    texts: Annotated[int, typer.Option(min=1, help="Texts of a round.", rich_help_panel=EMBEDDINGS)] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Texts of a request.", rich_help_panel=EMBEDDINGS)] = 32,
    python: Annotated[
        str,
        typer.Option(
            help="What runs NAME=sentence-transformers:FOLDER, a target that is no server.",
            rich_help_panel=EMBEDDINGS,
            show_default="this one",
        ),
    ] = sys.executable,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count; one to warm up goes before them.")] = 5,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="The most a round may take; what is unfinished is cut off.")
    ] = 60,
    seed: Annotated[int, typer.Option(help="Another seed, other prompts: for servers that have answered these.")] = 0,
    output: Annotated[Path, typer.Option(help="Where .json and .png go, without the ending.")] = Path("build/bench"),
) -> None:
    """Measure OpenAI-compatible servers side by side, in turns. N,N... may be one number or several: 1,8,32."""
    keys = dict(map(named, api_key))
    targets = [parse(each, keys, python) for each in target]
    check_names(targets, keys)
    loads: list[Load]
    if embeddings:
        loads = [EmbeddingLoad(each, texts, batch) for each in numbers(streams)]
    elif any(isinstance(each, Library) for each in targets):
        raise typer.BadParameter(f"'{LIBRARY}...' is for --embeddings")
    else:
        each_of = product(numbers(shared_prefix_words, least=0), numbers(words), numbers(tokens), numbers(streams))
        loads = [ChatLoad(n, max(n, requests), w, t, p, fixed_length) for p, w, t, n in each_of]
    raise typer.Exit(measure(Plan(targets, loads, rounds, seconds, seed), output, Console()))


def numbers(text: str, least: int = 1) -> list[int]:
    try:
        found = [int(each) for each in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < least:
        raise typer.BadParameter(f"{text!r} is no list of numbers from {least} up, such as 1,8,32")
    return found


def named(text: str) -> tuple[str, str]:
    name, _, rest = text.partition("=")
    if not name or not rest:
        raise typer.BadParameter(f"{text!r} is not NAME=..., such as {HERE}")
    return name, rest


def parse(text: str, keys: Mapping[str, str], python: str = sys.executable) -> Target:
    name, address = named(text)
    if address.startswith(LIBRARY):
        return Library(name, address.removeprefix(LIBRARY), python)
    kind = Batches if address.startswith(BATCH) else Server
    url, fragment = urldefrag(address.removeprefix(BATCH))
    model, _, option = fragment.partition("+")
    if not url.startswith(("http://", "https://")):
        raise typer.BadParameter(f"{text!r} is not NAME=URL, such as {HERE}")
    if option not in ("", "store"):
        raise typer.BadParameter(f"'+{option}' is not +store")
    if option and kind is Batches:
        raise typer.BadParameter(f"'{BATCH}...' has no +store")
    return kind(name, url.rstrip("/"), model or "default", option == "store", keys.get(name))


def check_names(targets: Sequence[Target], keys: Mapping[str, str]) -> None:
    names = [each.name for each in targets]
    if twice := [name for name in names if names.count(name) > 1]:
        raise typer.BadParameter(f"two targets are called {twice[0]!r}")
    if unknown := keys.keys() - names:
        raise typer.BadParameter(f"no target is called {min(unknown)!r}")


def measure(plan: Plan, output: Path, console: Console) -> int:
    """Shows and writes what was measured, however the run ends."""
    about, done, status = machine(), list[Round](), 0
    output.parent.mkdir(parents=True, exist_ok=True)  # now, not after hours of measuring
    try:
        with Progress(*COLUMNS, console=console) as progress:
            asyncio.run(collect(plan, done, Notes(plan, progress)))
    except Unreachable as problem:
        console.print(f"Error: {problem}", style="red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped: this is what was measured until then.")
        status = INTERRUPTED
    show(done, console)
    keep(output, plan, done, about, console)
    return status


def keep(output: Path, plan: Plan, done: Sequence[Round], about: dict[str, object], console: Console) -> None:
    """Writes a picture only if there are rounds after the warm-up."""
    write(report := output.with_name(f"{output.name}.json"), plan, done, about)
    files = [report]
    if found := add_up(done):
        models = dict.fromkeys(each.model for each in plan.targets)
        caption = f"{about['cpu']}, {about['cores']} cores · {', '.join(models)}"
        draw(picture := output.with_name(f"{output.name}.png"), found, caption)
        files.append(picture)
    console.print("Written: " + ", ".join(map(str, files)), highlight=False)


async def collect(plan: Plan, done: list[Round], note: Callable[[Round], None]) -> None:
    for target in plan.targets:
        await target.check()
    async with aclosing(run(plan)) as rounds:
        async for each in rounds:
            done.append(each)
            note(each)


class Notes:
    """Advances the progress bar by a round."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("checking targets", total=plan.steps)

    def __call__(self, last: Round) -> None:
        found = figures([last])
        errors = f", [red]{found.errors} errors[/red]" if found.errors else ""
        rate = f"{escape(last.target)} {found.rate:.0f} {last.load.unit}/s at {last.load.streams}{errors}"
        self._progress.update(self._task, advance=1, description=rate)
