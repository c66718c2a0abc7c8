"""OpenMP's teams are let go of by whoever has nothing to compute."""

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from services.engine.cpu import threads
from services.engine.cpu.threads import LONG, SHORT, TURNS, Neighbours, Turns, release_team
from tests.threads import computing_with


@pytest.fixture
def two_threads():
    with computing_with(2):
        yield


def num_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def are_gone_but(number: int) -> bool:
    """Threads that have ended are listed for a moment longer, and others' may end too."""
    deadline = time.monotonic() + 10
    while num_threads() > number and time.monotonic() < deadline:
        time.sleep(0.001)
    return num_threads() <= number


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads by /proc")
def test_a_team_ends_and_comes_back(two_threads: None) -> None:
    matrix = torch.ones(512, 512)
    release_team()
    without = num_threads()
    expected = (matrix @ matrix).sum()
    if num_threads() == without:
        pytest.skip("this torch computes without a team of OpenMP")
    release_team()
    assert are_gone_but(without)
    assert (matrix @ matrix).sum() == expected


def test_another_openmp_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    gomp = SimpleNamespace(omp_pause_resource_all=calls.append)
    for found, expected in ((gomp, [threads.SOFT]), (None, [])):
        monkeypatch.setattr(threads, "libgomp", lambda found=found: found)
        calls.clear()
        release_team()
        assert calls == expected


# --- neighbours ---


class Clock:
    """Time that passes by hand, and what the kernel says of a thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        self.turns = Turns(lost=5, computed=1.0)
        self.sat: list[float] = []
        monkeypatch.setattr(threads, "libgomp", lambda: object())
        monkeypatch.setattr(threads, "hold_team", self.sat.append)
        monkeypatch.setattr("services.engine.cpu.threads.time.monotonic", lambda: self.seconds)
        monkeypatch.setattr(Turns, "now", lambda: self.turns)

    def step(self, neighbours: Neighbours, seconds: float, *, computed: float, lost: int) -> None:
        with neighbours.watched():
            self.seconds += seconds
            self.turns = Turns(self.turns.lost + lost, self.turns.computed + computed)
        for thread in threading.enumerate():
            if thread.name == "neighbours":
                thread.join()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize(
    ("seconds", "computed", "lost"),
    [(0.01, 0.01, 0), (2.0, 0.1, 5), (0.13, 0.07, 485), (3.0, 2.9, 4 * TURNS), (3.0, 1.5, TURNS - 1)],
    ids=["quiet", "waits for a disk", "our own threads", "long", "little"],
)
def test_members_go_on_waiting_awake(clock: Clock, seconds: float, computed: float, lost: int) -> None:
    neighbours = Neighbours()
    for _ in range(5):
        clock.step(neighbours, seconds, computed=computed, lost=lost)

    assert clock.sat == []


def test_members_sleep_for_longer_and_longer_where_others_stay(clock: Clock) -> None:
    neighbours = Neighbours()
    for _ in range(6):
        clock.step(neighbours, 3.0, computed=1.5, lost=400)
        clock.step(neighbours, 0.02, computed=0.01, lost=0)
        clock.seconds += clock.sat[-1]
    assert clock.sat == [SHORT, 2 * SHORT, 4 * SHORT, 8 * SHORT, LONG, LONG]

    clock.seconds += 2 * LONG
    clock.step(neighbours, 3.0, computed=1.5, lost=400)
    assert clock.sat[-1] == SHORT


def test_neighbours_are_reported_once_an_hour(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    neighbours = Neighbours()
    for _ in range(20):
        clock.step(neighbours, 3.0, computed=1.5, lost=400)
        clock.seconds += clock.sat[-1]
    assert (len(clock.sat), len(caplog.messages)) == (20, 1)
    clock.seconds += threads.REPORTED_S
    clock.step(neighbours, 3.0, computed=1.5, lost=400)
    assert len(caplog.messages) == 2


def test_who_sleeps_is_not_sent_to_sleep_again(clock: Clock) -> None:
    neighbours = Neighbours()
    for _ in range(2):
        clock.step(neighbours, 1.0, computed=0.5, lost=400)

    assert clock.sat == [SHORT]


def test_members_go_on_sleeping_while_others_stay(clock: Clock) -> None:
    """They do not wait awake in between: such a step was seen to take 9 s."""
    neighbours = Neighbours()
    clock.step(neighbours, 3.0, computed=1.5, lost=400)
    woken = clock.seconds + SHORT
    while len(clock.sat) == 1 and clock.seconds < woken:
        clock.step(neighbours, 0.5, computed=0.2, lost=200)

    assert clock.seconds < woken
    assert clock.sat == [SHORT, 2 * SHORT]


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads by /proc")
def test_a_team_too_many_is_there_for_a_while(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    release_team()
    without = num_threads()
    with monkeypatch.context() as patch:
        patch.setattr("services.engine.cpu.threads.time.sleep", lambda _: seen.append(num_threads()))
        threads.hold_team(1.0)
    if threads.libgomp() is None:
        pytest.skip("this torch computes without a team of OpenMP")
    assert seen[0] > without
    assert are_gone_but(without)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_what_a_thread_has_computed_is_known() -> None:
    before = Turns.now()
    while Turns.now().computed < before.computed + 0.02:
        sum(range(1000))
    assert Turns.now().lost >= before.lost
