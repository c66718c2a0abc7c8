"""The attacked server, and the finding of an attack."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientTimeout, TCPConnector

SHOWN = 200  # characters of a finding
PATIENCE_S = 120.0  # a busy machine is not a finding


@dataclass(frozen=True, slots=True)
class Target:
    """A server. `keys`: two of its keys, whose owners attack each other; empty: it has none."""

    host: str
    port: int
    keys: tuple[str, ...] = ()
    pid: int | None = None  # on this machine
    listens_for_s: float = 60.0  # timeout of a silent connection
    seeing_model: str | None = None  # takes images
    every: int = 1  # sends only each nth of many requests

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
    """`through`: descriptions of requests that should have been rejected, out of `tries`."""

    tries: int = 0
    through: list[str] = field(default_factory=list)
    worst_heartbeat_ms: float | None = None  # None: not measured
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
    keys: bool | None = True  # for servers with keys, without, or any (None)
    heartbeat: bool = False  # measures the probe meanwhile
