"""What the service survives: `parley reliability crash | outage | scale | attack`, with servers of their own.

Everything runs in a temporary folder and on loopback, on a model with random weights, and is gone afterwards. Crashes
and outages are judged from outside: what clients were told is stored must be there, whole, when the server is back.
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
        """Answers that are neither ended nor given up, read from the database itself."""
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
    """Kill -9 the server at random moments under load, and look for what it had acknowledged."""
    with site(database, models_dir) as place, Progress(console=Console()) as progress:
        task = progress.add_task("killing", total=rounds)

        def note(report: CrashReport) -> None:
            progress.update(task, completed=report.rounds, description=f"{report.acknowledged} writes acknowledged")

        report = asyncio.run(crash_rounds(place.server, rounds, place.unfinished, note))
    finish(report, output, failed=bool(report.broken or report.unfinished or report.doubled))


@app.command("outage")
def outage_command(
    seconds: Annotated[float, typer.Option(min=1, help="How long PostgreSQL is away.")] = 30,
    models_dir: MODELS = Path("models"),
    output: OUTPUT = Path("build/outage.json"),
) -> None:
    """Stop PostgreSQL under load and start it again."""
    with site("postgresql", models_dir) as place:
        assert place.postgres
        report = asyncio.run(outage(place.server, place.postgres, seconds, place.unfinished))
    failed = bool(report.broken or report.unfinished or report.unstored_failed or report.without_retry_after)
    finish(report, output, failed=failed or report.recovered_after is None)


@app.command()
def scale(
    conversations: Annotated[int, typer.Option(min=1, help="Each of 20 items.")] = 100_000,
    database: DATABASE = "sqlite",
    models_dir: MODELS = Path("models"),
    output: OUTPUT = Path("build/scale.json"),
) -> None:
    """Fill a history, and time how it is listed, opened and searched."""
    with site(database, models_dir) as place:
        with Progress(console=Console()) as progress:
            task = progress.add_task("filling", total=conversations)
            url = place.server.database_url
            seconds = asyncio.run(fill(url, conversations, lambda done: progress.update(task, completed=done)))
        if place.postgres:  # as it does by itself in time; till then searches also read what the index has not taken in
            asyncio.run(place.postgres.execute("VACUUM ANALYZE"))
        report = ScaleReport(conversations, ITEMS_EACH * conversations, round(seconds, 1))
        place.server.start()
        measure(place.server.url, report)
    finish(report, output, failed=False)


def finish(report: CrashReport | OutageReport | ScaleReport, output: Path, *, failed: bool) -> None:
    found = asdict(report)
    Console().print_json(json.dumps(found))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=2))
    raise typer.Exit(int(failed))
