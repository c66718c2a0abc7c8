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
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), target.host, str(target.port)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout
    try:
        await process.stdout.readline()
        yield
        found, _ = await process.communicate(b"")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    beats = Beats(**json.loads(found))
    finding.worst_heartbeat_ms = round(beats.worst_ms, 1)
    finding.check(beats.count > 0 and not beats.missed, "the probe was not answered", f"{beats.missed} times")
