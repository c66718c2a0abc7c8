"""`parley reliability crash | outage | scale | attack`: tests with their own servers.

Everything runs in a temporary folder, on loopback, with a model of random weights. Crashes and outages are judged by
clients: every acknowledged write must be there, complete, when the server is back.
"""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import Progress

from database.migration import upgrade
from database.session import Database
from database.turn_repository import TurnRepository
from services.models.default_models import DEFAULT_CHAT
from services.models.fetch import fetch
from tools.attacks import command
from tools.faults import tiny_model
from tools.faults.crash import CrashReport, crash_rounds
from tools.faults.outage import OutageReport, outage
from tools.faults.postgres import PostgresServer, postgres_server
from tools.faults.scale import ITEMS_EACH, ScaleReport, fill, measure
from tools.faults.server import Server

Backend = Literal["sqlite", "postgresql"]
MODELS = Annotated[Path, typer.Option(help="Where default models are kept.")]
DATABASE = Annotated[Backend, typer.Option(help="For postgresql its server programs must be installed.")]
OUTPUT = Annotated[Path, typer.Option(help="Where the figures go, as JSON.")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, rich_markup_mode=None)
app.command("attack")(command.attack)


@dataclass(frozen=True, slots=True)
class Site:
    server: Server
    postgres: PostgresServer | None

    async def unfinished(self) -> int:
        """Number of running turns, read from the database."""
        database = Database(self.server.database_url)
        try:
            async with database.read() as session:
                return len(await TurnRepository(session).running())
        finally:
            await database.close()


@contextmanager
def site(backend: Backend, models_dir: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="parley-reliability-")))
        postgres = stack.enter_context(postgres_server()) if backend == "postgresql" else None
        url = postgres.url("postgres") if postgres else f"sqlite:///{folder}/parley.db"
        asyncio.run(upgrade(url))
        model = tiny_model.make(folder / "tiny", fetch(DEFAULT_CHAT, models_dir))
        server = Server(folder, url, model)
        stack.callback(server.kill)
        yield Site(server, postgres)


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

        report = asyncio.run(crash_rounds(opened.server, rounds, opened.unfinished, note))
    finish(report, output, failed=bool(report.broken or report.unfinished or report.doubled))


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


def finish(report: CrashReport | OutageReport | ScaleReport, output: Path, *, failed: bool) -> None:
    found = asdict(report)
    Console().print_json(json.dumps(found))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=2))
    raise typer.Exit(int(failed))
