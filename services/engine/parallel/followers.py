"""Followers: the leader's side of the other processes: starts them, talks to them, notices when one ends, ends them."""

import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TypeVar

from services.engine.parallel.messages import Failed, FollowerMessage, Join, LeaderMessage, RankPlan
from services.engine.parallel.watch import wait_for_hangup
from services.errors import EngineFailed

logger = logging.getLogger(__name__)

GRACE_S = 5.0  # in which a follower ends by itself
T = TypeVar("T", bound=FollowerMessage)


class Followers:
    """`on_loss` is called once, from a thread, when one of them ends before `close`."""

    def __init__(self, plan: RankPlan, inherited: tuple[int, ...], on_loss: Callable[[], None]) -> None:
        self.lost: str | None = None  # which one has ended
        self._on_loss = on_loss
        self._is_closing = False
        self._connections: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        for rank in range(1, plan.size):
            self._start(Join(plan, rank), inherited)
        self._watch = threading.Thread(target=self._watch_all, name="followers", daemon=True)
        self._watch.start()

    def send(self, message: LeaderMessage) -> None:
        """Raises OSError if one is gone."""
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        for connection in self._connections:
            connection.send_bytes(data)

    def receive(self, kind: type[T]) -> list[T]:
        """A message of each. Raises EngineFailed if one has failed."""
        return [self._receive(rank, kind) for rank in range(1, len(self._connections) + 1)]

    def failure(self) -> str | None:
        """What one of them says of its failure, or that it has ended; None: all are there."""
        if self.lost is None:
            return None
        for rank, connection in enumerate(self._connections, start=1):
            try:
                while connection.poll():
                    if isinstance(message := connection.recv(), Failed):
                        return f"rank {rank}: {message.reason}"
            except (OSError, EOFError):
                continue
        return self.lost

    def close(self) -> None:
        """Ends them all, and waits for their end."""
        self._is_closing = True
        for connection in self._connections:
            _hang_up(connection)
        for process in self._processes:
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._watch.join()
        for connection in self._connections:
            connection.close()

    def _start(self, join: Join, inherited: tuple[int, ...]) -> None:
        ours, theirs = Pipe()
        self._processes.append(start_process(join.rank, theirs, inherited))
        self._connections.append(ours)
        ours.send(join)

    def _receive(self, rank: int, kind: type[T]) -> T:
        try:
            message = self._connections[rank - 1].recv()
        except (OSError, EOFError):
            raise EngineFailed(f"rank {rank} ended while the model was loaded") from None
        if isinstance(message, Failed):
            raise EngineFailed(f"rank {rank}: {message.reason}")
        assert isinstance(message, kind)
        return message

    def _watch_all(self) -> None:
        ends = {connection.fileno(): rank for rank, connection in enumerate(self._connections, start=1)}
        rank = wait_for_hangup(ends)
        if not self._is_closing:
            self.lost = f"rank {rank} has ended"
            logger.error("%s: process %d", self.lost, self._processes[rank - 1].pid)
            self._on_loss()


def start_process(rank: int, connection: Connection, inherited: tuple[int, ...]) -> "subprocess.Popen[bytes]":
    """The process has the connection then, nobody else."""
    descriptor = connection.fileno()
    # in a group of its own: a terminal's Ctrl-C is for the leader, which then ends the followers
    process = subprocess.Popen(
        [sys.executable, "-m", "services.engine.parallel.follower", str(descriptor)],
        stdin=subprocess.DEVNULL,
        pass_fds=(descriptor, *inherited),
        process_group=0,
        env={**os.environ, "LOCAL_RANK": str(rank)},  # transformers reads weights onto this GPU
    )
    connection.close()
    return process


def _hang_up(connection: Connection) -> None:
    """Both ends notice, also while they are waited for."""
    with socket.socket(fileno=os.dup(connection.fileno())) as ending:
        try:
            ending.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it is gone
