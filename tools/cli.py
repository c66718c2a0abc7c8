"""The `parley` command. Each subcommand imports what it needs, so that `--help` is fast."""

import asyncio
import gc
import os
import socket
import sys
from contextlib import AbstractContextManager, ExitStack
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools import serve_options

if TYPE_CHECKING:
    from app.common.settings import Settings

# plain help: rich truncates option names in narrow terminals and pipes
app = typer.Typer(
    name="parley", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)

# passes all arguments to another command, --help included
PASS_THROUGH = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"parley {version('parley')}")
        raise typer.Exit


@app.callback()
def parley(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """An OpenAI-compatible chat service over any transformers model.

    Every setting is an environment variable (PARLEY_...), a line in .env or a key in parley.toml; options win.
    """


@app.command()
@serve_options.taken
def serve(**chosen: serve_options.Chosen) -> None:
    """Start the server."""
    override(**serve_options.settings(chosen))
    gc.disable()  # until everything is imported: services.engine.warm_up
    import uvicorn

    from app.common import configuration
    from app.common.exits import in_one_line
    from services.engine.early_library import open_early

    with in_one_line():
        settings = configuration.read()
        server = settings.server
        check_port(server.host, server.port)
        if server.replicas > 1:
            sys.exit(serve_replicas(settings))
        if server.workers > 1:  # each of which would report the same error
            prepare(settings)
    if server.workers == 1:  # others are processes of their own, which import everything themselves
        open_early(each.engine for each in (settings.model, *settings.models))
    # h11: httptools drops the body of a POST that offers h2c, as Java's HttpClient does.
    # The app configures logging, access log included.
    # app_dir: specs may be in the working directory, as with the `uvicorn` command.
    uvicorn.run(
        "app.main:app",
        host=server.host,
        port=server.port,
        workers=server.workers,
        http="h11",
        log_config=None,
        access_log=False,
        app_dir="",
    )


def serve_replicas(settings: "Settings") -> int:
    """Until a signal. Returns the exit code."""
    from app.common import log
    from app.replicas import processes, supervisor
    from app.replicas.front import raise_file_limit

    server, engine = settings.server, settings.engine
    log.configure(settings.log.level, settings.log.format)
    raise_file_limit()
    with ExitStack() as stack:
        listener = stack.enter_context(listening(server.host, server.port))
        if not settings.has_named_database:
            url = stack.enter_context(own_database())
            settings.database.url = url
            override(PARLEY_DATABASE__URL=url)
        prepare(settings)
        override(PARLEY_DATABASE__MIGRATE=False)
        shares = processes.shares(
            server.replicas,
            sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
            processes.gpus(),
            memory_share=engine.cpu_memory_share,
            gpu_share=engine.gpu_memory_utilization,
            is_local=settings.model.engine == "local",
        )
        return supervisor.run(listener, shares, stop_s=server.drain_s + 15)


def own_database() -> AbstractContextManager[str]:
    """Replicas share a PostgreSQL; raises OSError with a way out where its programs are not there."""
    from database import local_server

    try:
        local_server.program("pg_ctl")
    except FileNotFoundError as missing:
        raise OSError(f"{missing}: install them, or name a server in PARLEY_DATABASE__URL") from None
    return local_server.running(Path("parley-postgres"))


def listening(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise OSError(f"{host}:{port} cannot be listened on: {error.strerror}") from error
    return listener


def check_port(host: str, port: int) -> None:
    """Raises OSError if the address cannot be bound. Imports take seconds, so this is checked before."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise OSError(f"{host}:{port} cannot be listened on: {error.strerror}") from error


def prepare(settings: "Settings") -> None:
    """Checks and migrates once instead of in each worker."""
    from app.common import model_configs
    from database.schema_version import bring_up_to_date
    from services.models import sources

    sources.check(model_configs.configs(settings))
    if settings.database.migrate:
        asyncio.run(bring_up_to_date(settings.database.url))


def override(**settings: str | float | None) -> None:
    """Passes settings to the app by the environment: uvicorn imports the app, which reads it."""
    os.environ.update({name: str(value) for name, value in settings.items() if value is not None})


def subcommand(name: str, module: str, about: str) -> None:
    """Its own program is `app` of the module."""

    @app.command(name, help=about, context_settings=PASS_THROUGH)
    def run(context: typer.Context) -> None:
        import_module(module).app(context.args, prog_name=f"parley {name}")


for _name, _module, _about in (
    ("deploy", "tools.deploy", "Serve replicas on a Ray cluster. Needs the extra `ray`."),
    ("chat", "tools.chat.command", "Chat in the terminal, with a running server or one of its own."),
    ("config", "tools.config", "Write and check a file of settings: init, check."),
    ("migrate", "tools.data_migration", "Bring the database's schema up to date: upgrade, downgrade, status."),
    ("history", "tools.history", "Export, import, search and delete conversations."),
    ("keys", "tools.keys", "Make, list, update, rotate and revoke API keys: roles, projects, limits."),
    ("admin", "tools.admin", "Administer a running server: reload."),
    ("audit", "tools.audit", "List what was administered and deleted, and by whom."),
    ("usage", "tools.usage", "Show requests and tokens by key, project, model or hour."),
):
    subcommand(_name, _module, _about)


def models_command(name: str, about: str) -> None:
    @app.command(name, help=about, context_settings=PASS_THROUGH)
    def run(context: typer.Context) -> None:
        from tools import models

        models.app([name, *context.args], prog_name="parley")


for _name, _about in {
    "pull": "Download a model from the hub, or go on where it was cut off.",
    "list": "List the models on this disk: size, quantisation, whether they fit.",
    "rm": "Delete a model from this disk.",
    "ps": "List the models of a running server, and their state.",
    "load": "Load a model of a running server.",
    "unload": "Unload a model of a running server.",
}.items():
    models_command(_name, _about)


@app.command()
def fetch() -> None:
    """Download the default models, unless they are there."""
    from tools.fetch_models import main

    main()


@app.command(context_settings=PASS_THROUGH)
def bench(context: typer.Context) -> None:
    """Measure OpenAI-compatible servers side by side. Needs a checkout."""
    checkout_command("bench")(context.args, prog_name="parley bench")


@app.command(context_settings=PASS_THROUGH)
def reliability(context: typer.Context) -> None:
    """Test crashes, outages, load, a large history and attacks. Needs a checkout."""
    checkout_command("faults")(context.args, prog_name="parley reliability")


def checkout_command(package: str) -> typer.Typer:
    """The command of `tools.<package>`, which is not in the wheel: it needs PostgreSQL, compilers and aiohttp."""
    try:
        command: typer.Typer = import_module(f"tools.{package}.command").app
    except ModuleNotFoundError as missing:
        if str(missing.name).startswith("tools."):
            sys.exit("Error: this command is not in the installed package: run it in a checkout of the repository")
        sys.exit(f"Error: this needs {missing.name}: pip install --requirement requirements-bench.txt")
    return command


def main() -> None:
    app()


if __name__ == "__main__":
    main()
