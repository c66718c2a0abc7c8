"""What is attacked, and what an attack has to say in the end."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientTimeout, TCPConnector

SHOWN = 200  # characters of what came through
PATIENCE_S = 120.0  # a busy machine is no hole


@dataclass(frozen=True, slots=True)
class Target:
    """A server. `keys`: two of its keys, whose holders attack each other; none: it needs none."""

    host: str
    port: int
    keys: tuple[str, ...] = ()
    pid: int | None = None  # on this machine
    listens_for_s: float = 60.0  # to a connection that says nothing
    seeing_model: str | None = None  # that takes images
    every: int = 1  # of many requests each nth only

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def alpha(self) -> str:
        return self.keys[0]

    @property
    def beta(self) -> str:
        return self.keys[1]

    def client(self, key: str | None = None) -> ClientSession:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = ClientTimeout(total=PATIENCE_S)
        return ClientSession(self.url, headers=headers, connector=TCPConnector(limit=0), timeout=timeout)

    def resident_mib(self) -> int | None:
        if self.pid is None:
            return None
        status = Path(f"/proc/{self.pid}/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS:")), None)


@dataclass(slots=True)
class Finding:
    """`through`: what should have been refused and was not, in words. `tries` of which it is."""

    tries: int = 0
    through: list[str] = field(default_factory=list)
    worst_heartbeat_ms: float | None = None  # None: nobody listened
    seconds: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)

    def check(self, is_well: bool, what: str, seen: object = "") -> None:
        self.tries += 1
        if not is_well:
            self.through.append(f"{what}: {str(seen)[:SHOWN]}" if seen != "" else what)


Run = Callable[[Target, Finding], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Attack:
    run: Run
    keys: bool | None = True  # whether it is one for servers with keys; None: for any
    heartbeat: bool = False  # whether the probes are watched meanwhile
