"""`parley reliability crash | replicas | outage | scale | attack | soak | …`: tests with their own servers.

Everything runs in a temporary folder, on loopback, with a model of random weights. Crashes and outages are judged by
clients: every acknowledged write must be there, complete, when the server is back.
"""

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from tools.attacks import command
from tools.faults import load_command
from tools.faults.crash import CrashReport, crash_rounds
from tools.faults.outage import OutageReport, outage
from tools.faults.replicas import ENGINE, ReplicaReport, replica_rounds
from tools.faults.scale import ITEMS_EACH, ScaleReport, fill, measure
from tools.faults.site import Backend, site

MODELS = Annotated[Path, typer.Option(help="Where default models are kept.")]
DATABASE = Annotated[Backend, typer.Option(help="For postgresql its server programs must be installed.")]
OUTPUT = Annotated[Path, typer.Option(help="Where the figures go, as JSON.")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, rich_markup_mode=None)
app.command("attack")(command.attack)
app.command("soak")(load_command.soak_command)
app.command("streams")(load_command.streams_command)
app.command("beside-batch")(load_command.beside_batch_command)


@app.command()
def crash(
    rounds: Annotated[int, typer.Option(min=1, help="Kills.")] = 100,
    database: DATABASE = "sqlite",
    models_dir: MODELS = Path("models"),
    output: OUTPUT = Path("build/crash.json"),
) -> None:
    """Kill -9 the server at random times under load, and check all acknowledged writes."""
    with site(database, models_dir) as opened, Progress(console=Console()) as progress:
        task = progress.add_task("killing", total=rounds)

        def note(report: CrashReport) -> None:
            progress.update(task, completed=report.rounds, description=f"{report.acknowledged} writes acknowledged")

        report = asyncio.run(crash_rounds(opened.server, rounds, opened.unfinished, opened.usage, note))
    finish(report, output, failed=report.has_failed)


@app.command("replicas")
def replicas_command(
    rounds: Annotated[int, typer.Option(min=1, help="Kills.")] = 50,
    replicas: Annotated[int, typer.Option(min=2, help="Processes behind the front.")] = 3,
    models_dir: MODELS = Path("models"),
    output: OUTPUT = Path("build/replicas.json"),
) -> None:
    """Kill -9 one of several replicas at random times under load; an engine without a model answers."""
    with site("postgresql", models_dir) as opened, Progress(console=Console()) as progress:
        server = opened.server
        server.settings |= ENGINE
        server.options = ("--replicas", str(replicas))
        task = progress.add_task("killing", total=rounds)

        def note(report: ReplicaReport) -> None:
            progress.update(task, completed=report.rounds, description=f"{report.acknowledged} writes acknowledged")

        report = asyncio.run(replica_rounds(server, replicas, rounds, opened.unfinished, note))
    failed = bool(report.broken or report.unfinished or report.doubled or report.gaps or report.slowest_s > 5)
    finish(report, output, failed=failed)


@app.command("outage")
def outage_command(
    seconds: Annotated[float, typer.Option(min=1, help="How long PostgreSQL is away.")] = 30,
    models_dir: MODELS = Path("models"),
    output: OUTPUT = Path("build/outage.json"),
) -> None:
    """Stop PostgreSQL under load and start it again."""
    with site("postgresql", models_dir) as opened:
        assert opened.postgres
        report = asyncio.run(outage(opened.server, opened.postgres, seconds, opened.unfinished))
    failed = bool(report.broken or report.unfinished or report.unstored_failed or report.without_retry_after)
    finish(report, output, failed=failed or report.recovered_after is None)


@app.command()
def scale(
    conversations: Annotated[int, typer.Option(min=1, help="Each of 20 items.")] = 100_000,
    database: DATABASE = "sqlite",
    models_dir: MODELS = Path("models"),
    output: OUTPUT = Path("build/scale.json"),
) -> None:
    """Fill a history, and measure listing, opening and searching it."""
    with site(database, models_dir) as opened:
        with Progress(console=Console()) as progress:
            task = progress.add_task("filling", total=conversations)
            url = opened.server.database_url
            seconds = asyncio.run(fill(url, conversations, lambda done: progress.update(task, completed=done)))
        if (
            opened.postgres
        ):  # PostgreSQL does it by itself later; until then searches also scan the index's pending list
            asyncio.run(opened.postgres.execute("VACUUM ANALYZE"))
        report = ScaleReport(conversations, ITEMS_EACH * conversations, round(seconds, 1))
        opened.server.start()
        measure(opened.server.url, report)
    finish(report, output, failed=False)


def finish(report: CrashReport | OutageReport | ReplicaReport | ScaleReport, output: Path, *, failed: bool) -> None:
    found = asdict(report)
    Console().print_json(json.dumps(found))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=2))
    raise typer.Exit(int(failed))
