"""Requests a server's probe in a loop until stdin closes; a process, so that the attacker does not slow it.

Prints a line when it has started, and the figures as JSON at the end.
"""

import http.client
import json
import sys
import threading
import time
from dataclasses import asdict, dataclass

PATH = "/health/live"
EACH_S = 0.02
GONE_S = 20.0  # without an answer: an orchestrator would restart the server


@dataclass(slots=True)
class Beats:
    count: int = 0
    missed: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    worst_ms: float = 0.0


def _beat(host: str, port: int, ended: threading.Event) -> Beats:
    beats, times = Beats(), list[float]()
    connection = http.client.HTTPConnection(host, port, timeout=GONE_S)
    while not ended.wait(EACH_S):
        began = time.monotonic()
        try:
            connection.request("GET", PATH)
            connection.getresponse().read()
            beats.count += 1
        except (OSError, http.client.HTTPException):
            connection.close()
            beats.missed += 1
        times.append(round(1000 * (time.monotonic() - began), 1))
    connection.close()
    if times:
        times.sort()
        beats.p50_ms, beats.p99_ms, beats.worst_ms = times[len(times) // 2], times[len(times) * 99 // 100], times[-1]
    return beats


def _main(host: str, port: str) -> None:
    ended, beats = threading.Event(), list[Beats]()
    beating = threading.Thread(target=lambda: beats.append(_beat(host, int(port), ended)))
    beating.start()
    print("begun", flush=True)
    sys.stdin.read()
    ended.set()
    beating.join()
    print(json.dumps(asdict(beats[0])))


if __name__ == "__main__":
    _main(*sys.argv[1:])
