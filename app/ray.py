"""Replicas on a Ray cluster, by Ray Serve: `parley deploy`, or `serve run app.ray:app`.

Each replica is the whole app. Settings are those of the process that deploys; a database must be named, which all nodes
reach. `pip install 'parley[ray]'`.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import RequestRouterConfig

from app.common import configuration
from app.common.settings import Settings
from app.replicas.ray_board import OfAll, Reporter
from app.replicas.ray_ports import keep_to_loopback
from services.rendezvous import GAP

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
PASSED = ("PARLEY_", "HF_", "CUDA_")  # variables of the deploying process that replicas get
LEAST, DEPLOYED_AT = "REPLICAS_AT_LEAST", "DEPLOYED_AT"  # variables of replicas


@dataclass(frozen=True, slots=True)
class Scale:
    """How many replicas there are, and what each is given. `most` above `least`: as many as requests need."""

    least: int = 1
    most: int = 1
    cpus: float = 1
    gpus: float = 0
    target_ongoing_requests: float | None = None  # of each; None: as many as a batch holds
    upscale_delay_s: float = 30
    downscale_delay_s: float = 600


def application(settings: Settings, scale: Scale) -> serve.Application:
    if not settings.has_named_database or settings.database.url.startswith("sqlite"):
        raise ValueError("replicas on a cluster share PostgreSQL: name it in PARLEY_DATABASE__URL")
    environment = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
    environment |= {"PARLEY_DATABASE__MIGRATE": "false", "PARLEY_SERVER__REPLICAS": "1", LEAST: str(scale.least)}
    environment[DEPLOYED_AT] = str(time.time())  # replicas are replaced also where nothing else has changed
    # a replica with far more to do rejects a request, and Ray tries the next one of its ring
    most_at_once = settings.engine.max_num_seqs + GAP
    deployment = serve.deployment(
        serve.ingress(_build)(_Parley),
        name="parley",
        max_ongoing_requests=most_at_once,
        graceful_shutdown_timeout_s=settings.server.drain_s + 15,
        **_routing(),
        ray_actor_options={
            "num_cpus": scale.cpus,
            "num_gpus": scale.gpus,
            "runtime_env": {"env_vars": environment},
        },
        **_number(scale, settings.engine.max_num_seqs),
    )
    return deployment.bind()


def _routing() -> dict[str, Any]:
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":  # which chooses by load alone, and refuses routers
        return {}
    return {"request_router_config": RequestRouterConfig(request_router_class=ROUTER)}


def _number(scale: Scale, max_num_seqs: int) -> dict[str, Any]:
    if scale.most <= scale.least:
        return {"num_replicas": scale.least}
    return {
        "autoscaling_config": {
            "min_replicas": scale.least,
            "max_replicas": scale.most,
            "target_ongoing_requests": scale.target_ongoing_requests or max_num_seqs,
            "upscale_delay_s": scale.upscale_delay_s,
            "downscale_delay_s": scale.downscale_delay_s,
        }
    }


class _Parley:
    """What Ray makes a replica of; requests go to the app that `_build` returns."""

    async def check_health(self) -> None:
        """The process answers. A model that is loading is no reason to start another."""


def _build() -> FastAPI:
    """In the replica's process. Logs name it."""
    name = os.environ["REPLICA_NAME"] = serve.get_replica_context().replica_tag.rpartition("#")[2]
    keep_to_loopback()
    from app.main import create_app

    app = create_app(configuration.read(), environment=os.environ)
    services = app.state.services
    reporter = Reporter(name, int(os.environ[LEAST]), services.metrics.render, services.models.is_ready)
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        reporting = asyncio.create_task(reporter.run())
        async with inner(app) as state:
            yield state
        reporting.cancel()

    app.router.lifespan_context = lifespan
    app.add_middleware(OfAll, reporter=reporter)
    return app


def __getattr__(name: str) -> serve.Application:
    """`app`, for `serve run app.ray:app`: one replica, of the settings of this environment."""
    if name != "app":
        raise AttributeError(name)
    return application(configuration.read(), Scale())
