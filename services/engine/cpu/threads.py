"""OpenMP's teams: each thread that ever computed keeps one, and more teams than cores make all of them slow.

libgomp lets the members of a team wait for the next parallel region awake only while there are no more of them than
cores; beyond that they sleep and are woken for each of a step's several hundred regions, which more than doubles a
step. So whoever has nothing to compute lets its team go; it comes back by itself with the next region.

Waiting awake has its price where other programs want a processor too. Linux shares them between sessions: it may give
one to the other program and leave the other one to both members of a team, and then each region lasts until a member's
turn is over. A step of 10 ms takes 3 s, with members that sleep it takes 25 ms, whoever else is there. So where steps
show it, members sleep for a while: a team more than there is room for makes them.
"""

import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from services.engine.device.resources import num_processors

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

SOFT = 1  # omp_pause_soft of the OpenMP 5.0 specification
TURNS = 64  # that a step lost to others; on a quiet machine fewer than half as many
TURN = 0.001  # seconds, at least: another of our own threads takes a tenth of that
RENEWED = 2.5  # seconds before members wait awake again: where others are still there, the next step would stand still
SHORT, LONG = 5.0, 60.0  # seconds for which members sleep: at first, and at most, where it has not helped for long
REPORTED_S = 3600.0  # between two lines of the log about the same neighbours
ENOUGH = 1_000_000  # numbers that torch computes on with all threads


@dataclass(frozen=True, slots=True)
class Turns:
    """What the kernel says of the calling thread."""

    lost: int  # times that it would have gone on, but others were let in
    computed: float  # seconds

    @classmethod
    def now(cls) -> "Turns":
        import resource  # which not every system has; those with libgomp do

        usage = resource.getrusage(resource.RUSAGE_THREAD)
        return cls(usage.ru_nivcsw, usage.ru_utime + usage.ru_stime)


class Neighbours:
    """Other programs on the same processors, as far as they show in our steps."""

    def __init__(self) -> None:
        self._seconds = SHORT
        self._until = 0.0  # members sleep
        self._reported: float | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        if libgomp() is None:
            yield
            return
        began, before = time.monotonic(), Turns.now()
        yield
        after, now = Turns.now(), time.monotonic()
        lost, waited = after.lost - before.lost, now - began - (after.computed - before.computed)
        if lost >= TURNS and waited >= TURN * lost and now >= self._until - RENEWED:
            self._make_room(now)

    def _make_room(self, now: float) -> None:
        again = now < self._until + self._seconds
        self._seconds = min(2 * self._seconds, LONG) if again else SHORT
        self._until = now + self._seconds
        if self._reported is None or now >= self._reported + REPORTED_S:
            self._reported = now
            logger.warning("another program keeps the processors busy: threads give way to it (reported once an hour)")
        threading.Thread(target=hold_team, args=(self._seconds,), name="neighbours", daemon=True).start()


def hold_team(seconds: float) -> None:
    """Keeps a team that does nothing."""
    torch.ones(ENOUGH).sum()
    time.sleep(seconds)
    release_team()


neighbours = Neighbours()


def fit_container() -> None:
    """No more threads than processors: a container's time would be used up early in each tenth of a second, and a step
    would stand still for the rest of it. Who sets OMP_NUM_THREADS knows better."""
    allowed = num_processors()
    if allowed and allowed < torch.get_num_threads() and "OMP_NUM_THREADS" not in os.environ:
        logger.info("%d threads, because that many processors are allowed", allowed)
        torch.set_num_threads(allowed)


def loads(load: Callable[P, R]) -> Callable[P, R]:
    """Of an engine or an adapter: the thread that loads it does not compute again, and lets its team go. With a team
    too many libgomp's threads do not wait for each other by spinning, and a step takes four times as long."""

    @wraps(load)
    def loading(*args: P.args, **kwargs: P.kwargs) -> R:
        fit_container()
        try:
            return load(*args, **kwargs)
        finally:
            release_team()

    return loading


def release_team() -> None:
    """Ends the calling thread's team, in microseconds. Nothing happens with another OpenMP than libgomp."""
    if (gomp := libgomp()) is not None:
        gomp.omp_pause_resource_all(SOFT)


@cache
def libgomp() -> Any:
    """The one that torch brings and has loaded."""
    for path in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"):
        library = ctypes.CDLL(str(path))
        if hasattr(library, "omp_pause_resource_all"):
            return library
    logger.info("torch runs without libgomp: its threads are left alone")
    return None
