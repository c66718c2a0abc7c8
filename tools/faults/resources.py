"""What a server takes of its machine, sampled over time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import asyncpg

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sample:
    seconds: float  # since the first one
    requests: int  # answered so far
    rss_mib: float
    descriptors: int
    threads: int
    database_mib: float
    files: int  # in the folder of /v1/files


@dataclass(slots=True)
class Sampler:
    """`requests`: how many are answered so far."""

    pid: int
    database_url: str
    folder: Path
    requests: Callable[[], int]
    _began: float | None = None

    async def __call__(self) -> Sample:
        now = time.monotonic()
        self._began = self._began or now
        process = Path(f"/proc/{self.pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        return Sample(
            seconds=round(now - self._began, 1),
            requests=self.requests(),
            rss_mib=round(int(status["VmRSS"].split()[0]) / 1024, 1),
            descriptors=len(list((process / "fd").iterdir())),
            threads=int(status["Threads"]),
            database_mib=round(await self._database_bytes() / MIB, 2),
            files=sum(1 for _ in self._files()),
        )

    async def _database_bytes(self) -> int:
        if self.database_url.startswith("sqlite"):
            return sum(path.stat().st_size for path in self.folder.glob("parley.db*"))
        connection = await asyncpg.connect(self.database_url)
        try:
            size: int = await connection.fetchval("SELECT pg_database_size(current_database())")
            return size
        finally:
            await connection.close()

    def _files(self) -> Iterator[Path]:
        return (path for path in self.folder.glob("parley-files/**/*") if path.is_file())


async def sampled(sampler: Callable[[], Awaitable[Sample]], each_s: float, samples: list[Sample]) -> None:
    """Until it is cancelled."""
    while True:
        samples.append(await sampler())
        await asyncio.sleep(each_s)


def series(samples: list[Sample], name: str) -> list[float]:
    return [float(asdict(sample)[name]) for sample in samples]
