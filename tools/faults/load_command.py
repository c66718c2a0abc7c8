"""`parley reliability soak | streams | beside-batch`: a server under load for long, under much at once, and under two
kinds of it."""

import asyncio
import json
import resource
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from services.models.default_models import DEFAULT_CHAT
from services.models.fetch import fetch
from tools.faults import soak_picture
from tools.faults.beside_batch import BesideBatchReport, beside_batch
from tools.faults.replicas import ENGINE
from tools.faults.server import Server
from tools.faults.site import Backend, site
from tools.faults.soak import SoakReport, soak
from tools.faults.streams import StreamsReport, streams

Model = Literal["tokens", "tiny", "default"]
FILES = 65_536  # open files of server and clients, as far as this process may have them
MODEL = Annotated[Model, typer.Option(help="tokens: no model; tiny: random weights; default: the default chat model.")]
MODELS = Annotated[Path, typer.Option(help="Where default models are kept.")]
DATABASE = Annotated[Backend, typer.Option(help="For postgresql its server programs must be installed.")]


def soak_command(
    seconds: Annotated[float, typer.Option(min=10, help="How long.")] = 3600,
    clients: Annotated[int, typer.Option(min=1, help="Clients, each with one request at a time.")] = 8,
    model: MODEL = "default",
    database: DATABASE = "sqlite",
    models_dir: MODELS = Path("models"),
    output: Annotated[Path, typer.Option(help="Figures as JSON; the picture lies beside it.")] = Path(
        "build/soak.json"
    ),
) -> None:
    """Use all routes for long; exit code 1 after any error, or if memory, descriptors or the database grow."""
    with site(database, models_dir) as opened, Progress(console=Console()) as progress:
        settings(opened.server, model, models_dir)
        task = progress.add_task("using all routes", total=seconds)

        def note(report: SoakReport) -> None:
            at = report.samples[-1].seconds if report.samples else 0
            progress.update(task, completed=at, description=f"{report.requests} requests, {report.failed} failed")

        report = asyncio.run(soak(opened.server, seconds, clients, opened.unfinished, note))
    show_soak(report)
    write(asdict(report), output)
    soak_picture.write(report.samples, output.with_suffix(".png"))
    raise typer.Exit(int(report.has_failed))


def streams_command(
    count: Annotated[int, typer.Option(min=1, help="Streams at once.")] = 1000,
    tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 32,
    max_queue: Annotated[int, typer.Option(min=0, help="PARLEY_ENGINE__MAX_QUEUE; what is more gets 429.")] = 256,
    probe_ms: Annotated[float, typer.Option(help="The longest that /health/live may take.")] = 100,
    timeout_s: Annotated[float, typer.Option(help="After which a stream hangs.")] = 900,
    model: MODEL = "default",
    database: DATABASE = "sqlite",
    models_dir: MODELS = Path("models"),
    output: Annotated[Path, typer.Option(help="Figures as JSON.")] = Path("build/streams.json"),
) -> None:
    """Open many streams at once; exit code 1 if one is neither answered nor refused, or the probe waits."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (_files(), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with site(database, models_dir) as opened:
        settings(opened.server, model, models_dir)
        opened.server.settings["PARLEY_ENGINE__MAX_QUEUE"] = str(max_queue)
        report = asyncio.run(streams(opened.server, count, tokens, timeout_s))
    show_streams(report)
    write(asdict(report), output)
    raise typer.Exit(int(report.has_failed(probe_ms)))


def beside_batch_command(
    rounds: Annotated[int, typer.Option(min=1, help="With and without a batch, in turns.")] = 5,
    requests: Annotated[int, typer.Option(min=1, help="Of each half of a round, one after the other.")] = 20,
    words: Annotated[int, typer.Option(min=1, help="Of each prompt.")] = 400,
    limit: Annotated[float, typer.Option(help="How much longer the first token may take, as a ratio.")] = 1.05,
    model: MODEL = "default",
    database: DATABASE = "sqlite",
    models_dir: MODELS = Path("models"),
    output: Annotated[Path, typer.Option(help="Figures as JSON.")] = Path("build/beside-batch.json"),
) -> None:
    """Measure what a batch costs the first tokens of other requests; exit code 1 if that is more than the limit."""
    with site(database, models_dir) as opened, Progress(console=Console()) as progress:
        settings(opened.server, model, models_dir)
        task = progress.add_task("measuring", total=rounds)

        def note(report: BesideBatchReport) -> None:
            progress.update(task, advance=1, description=f"ratio {report.ratio:g}")

        report = asyncio.run(beside_batch(opened.server, rounds, requests, words, note))
    without, beside = median(report.without), median(report.beside)
    Console().print(
        f"first token after {without:g} ms, beside a batch after {beside:g} ms: {report.ratio:g} times; "
        f"{report.lines} lines of batches were answered"
    )
    write(asdict(report) | {"ratio": report.ratio}, output)
    raise typer.Exit(int(report.has_failed(limit)))


def _files() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)


def settings(server: Server, model: Model, models_dir: Path) -> None:
    server.settings["PARLEY_MODELS_DIR"] = str(models_dir.resolve())
    if model == "tokens":
        server.settings |= ENGINE
    elif model == "default":
        server.model = fetch(DEFAULT_CHAT, models_dir).resolve()
        server.settings["PARLEY_ENGINE__COMPILE"] = "true"


def show_soak(report: SoakReport) -> None:
    table = Table("", "first", "last", "most", "a 1,000 requests", "limit")
    for each in report.growths:
        mark = " too much" if each.is_too_much else ""
        values = (f"{each.first:g}", f"{each.last:g}", f"{each.most:g}")
        table.add_row(each.name, *values, f"{each.slope:g} ± {each.error:g}{mark}", f"{each.limit:g}")
    console = Console()
    console.print(table)
    console.print(f"{report.seconds:g} s, {report.clients} clients, {report.requests} requests, {report.failed} failed")
    _list([*report.errors, *report.log], console)


def show_streams(report: StreamsReport) -> None:
    table = Table("", "", show_header=False)
    for name in ("count", "most_open", "answered", "refused", "hung", "num_broken", "seconds", "chunks"):
        table.add_row(name, f"{getattr(report, name):g}")
    for name in ("first_s", "rss_mib", "descriptors"):
        table.add_row(name, ", ".join(f"{key} {value}" for key, value in getattr(report, name).items()))
    table.add_row("probe, ms", ", ".join(f"{key} {value:g}" for key, value in asdict(report.probe).items()))
    console = Console()
    console.print(table)
    _list([*report.broken, *report.log], console)


def _list(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        console.print(line, markup=False)


def write(figures: dict[str, Any], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(figures, indent=2))
