"""Pulls a model in a process of its own: `python -m services.models.pull_process NAME [REVISION]`.

It can be ended at any moment, and keeps neither the event loop nor the engine's threads waiting. On its standard output
are lines of JSON: progress, and at the end an error if there was one.
"""

import json
import sys
import time

from services.errors import ServiceError
from services.models import hub

INTERVAL_S = 0.1  # between two reports


class Reporter:
    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, have: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= INTERVAL_S or have == total:
            self._last = now
            write(completed=have, total=total)


def write(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def main(name: str, revision: str | None = None) -> None:
    try:
        hub.pull(name, revision, Reporter())
    except ServiceError as error:
        write(error=type(error).__name__, message=error.message, param=error.param)


if __name__ == "__main__":
    main(*sys.argv[1:])
