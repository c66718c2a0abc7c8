"""`parley deploy`: replicas on a Ray cluster. Nothing is reported to anybody, and there is no dashboard."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any

import typer

LOCAL = "local"
APP = "parley"
OBJECT_STORE = 200 * 1024 * 1024  # bytes; nothing large goes through it
# read by Ray where it is imported, and by the processes that it starts
RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "app.replicas.ray_proxy:middlewares",
}
# Ray takes the address of a network for its node otherwise, whatever it is given, and its processes listen on all
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def deploy(
    address: Annotated[str, typer.Option(help="The cluster's, as `ray start` prints it; local: one of this process.")],
    replicas: Annotated[int, typer.Option(min=1, help="Replicas; with --max-replicas the least.")] = 1,
    max_replicas: Annotated[int, typer.Option(help="The most, as many as requests need.", show_default="replicas")] = 0,
    target_ongoing_requests: Annotated[
        float | None,
        typer.Option(min=0.1, help="Requests of each replica that --max-replicas aims at.", show_default="a batch"),
    ] = None,
    upscale_delay: Annotated[float, typer.Option(min=0, help="Seconds of more requests before one is added.")] = 30,
    downscale_delay: Annotated[float, typer.Option(min=0, help="Seconds of fewer before one is ended.")] = 600,
    cpus: Annotated[float, typer.Option(help="Cores of each replica.")] = 1,
    gpus: Annotated[float, typer.Option(help="GPUs of each replica, or a share of one.")] = 0,
    host: Annotated[str, typer.Option(help="The address to listen on, on the head node.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8000,
) -> None:
    """Serve replicas on a Ray cluster until SIGTERM or Ctrl-C. Settings are PARLEY_... variables, as for `serve`."""
    os.environ |= RAY | (LOOPBACK if address == LOCAL else {})
    if address != LOCAL and _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `ray start` decides, but no program that joins
    from app.common import configuration
    from app.common.exits import in_one_line
    from tools.cli import check_port, override, own_database, prepare

    with ExitStack() as stack, in_one_line():
        override(PARLEY_SERVER__HOST=host, PARLEY_SERVER__PORT=port)
        settings = configuration.read()
        try:
            from app.ray import Scale, application
        except ModuleNotFoundError as missing:
            raise ValueError(f"this needs {missing.name}: pip install 'parley[ray]'") from None
        if address == LOCAL:
            check_port(host, port)
            if not settings.has_named_database:
                override(PARLEY_DATABASE__URL=stack.enter_context(own_database()))
                settings = configuration.read()
        scale = Scale(replicas, max_replicas, cpus, gpus, target_ongoing_requests, upscale_delay, downscale_delay)
        application(settings, scale)  # refused before anything is started
        prepare(settings)
        _connect(address)
        try:
            _run_until_ended(lambda: application(settings, scale), host, port)
        except KeyboardInterrupt:
            pass
        finally:
            _end(settings.server.drain_s + 30)


def _has_token() -> bool:
    named = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    return named or Path.home().joinpath(".ray", "auth_token").exists()


def _connect(address: str) -> None:
    import ray

    if address == LOCAL:
        ray.init(
            include_dashboard=False,
            object_store_memory=OBJECT_STORE,
            _node_ip_address="127.0.0.1",
            logging_level="WARNING",
        )
    else:
        ray.init(address=address, namespace="serve")


def _run_until_ended(build: Callable[[], Any], host: str, port: int) -> None:
    """Raises KeyboardInterrupt at SIGTERM, too, also while replicas are starting. SIGUSR1 replaces them."""
    from ray import serve

    restarts = SimpleQueue[int]()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # after Ray has set one of its own
    signal.signal(signal.SIGUSR1, lambda number, _: restarts.put(number))
    serve.start(http_options={"host": host, "port": port})
    serve.run(build(), name=APP, route_prefix="/")
    print(f"ready at http://{host}:{port}/; SIGUSR1 to process {os.getpid()} restarts the replicas", flush=True)
    while True:
        restarts.get()
        serve.run(build(), name=APP, route_prefix="/")
        print("all replicas are restarted", flush=True)


def _end(longest_s: float) -> None:
    """Replicas answer what they have. Other applications of the cluster stay."""
    import ray
    from ray import serve
    from ray.serve.exceptions import RayServeException

    from app.replicas.ray_board import remove_board

    try:
        serve.delete(APP, _blocking=False)  # that would wait for a minute at most
        last = time.monotonic() + longest_s
        while APP in serve.status().applications and time.monotonic() < last:
            time.sleep(0.2)
        remove_board()
        if not serve.status().applications:
            serve.shutdown()
    except RayServeException:  # it had not begun
        pass
    ray.shutdown()
