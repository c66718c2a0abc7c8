"""Measures the latency of a probe during an attack."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tools.attacks.beat import Beats
from tools.attacks.target import Finding, Target

PROGRAM = Path(__file__).with_name("beat.py")


@asynccontextmanager
async def watched(target: Target, finding: Finding) -> AsyncIterator[None]:
    """An unanswered probe is a finding; reports the longest latency."""
    async with beating(target.host, target.port) as found:
        yield
    (beats,) = found
    finding.worst_heartbeat_ms = round(beats.worst_ms, 1)
    finding.check(beats.count > 0 and not beats.missed, "the probe was not answered", f"{beats.missed} times")


@asynccontextmanager
async def beating(host: str, port: int) -> AsyncIterator[list[Beats]]:
    """The list has the figures at the end."""
    command = (sys.executable, str(PROGRAM), host, str(port))
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    found: list[Beats] = []
    try:
        await process.stdout.readline()
        yield found
        printed, _ = await process.communicate(b"")
        found.append(Beats(**json.loads(printed)))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
