"""A follower: a process that computes the leader's steps on its part of the model.

`python -m services.engine.parallel.follower FD`: the file descriptor of a connection to the leader, with which it ends.
"""

import logging
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection

from services.engine.parallel.watch import exit_with

logger = logging.getLogger(__name__)

IDLE_S = 0.05  # without a step, after which the threads of a team no longer wait awake


def main(descriptor: int) -> None:
    threading.Thread(target=exit_with, args=(descriptor,), name="leader", daemon=True).start()
    follow(Connection(descriptor))


def follow(connection: Connection) -> None:
    """Until the leader hangs up, or something fails."""
    # imported now: a leader that ends within these seconds ends the process, too
    from services.engine.parallel.group import GroupAborted
    from services.engine.parallel.messages import Failed

    try:
        _follow(connection)
    except GroupAborted as error:
        logger.warning("%s", error)
    except Exception as error:
        logger.exception("this rank has failed")
        with suppress(OSError):
            connection.send(Failed(f"{type(error).__name__}: {error}".splitlines()[0]))
    finally:
        connection.close()


def _follow(connection: Connection) -> None:
    from services.engine.execution.local_executor import LocalExecutor
    from services.engine.parallel.messages import RankLoaded, Ready
    from services.engine.parallel.rank import build_rank, compute, free_budget, load_rank

    join = connection.recv()
    logging.basicConfig(level=logging.WARNING, format=f"%(levelname)s: rank {join.rank}: %(message)s")
    loaded = load_rank(join.plan, join.rank)
    connection.send(RankLoaded(free_budget(join.plan, loaded.device)))
    executor = LocalExecutor(build_rank(join.plan, loaded.model, connection.recv()))
    connection.send(Ready())
    with suppress(EOFError, ConnectionResetError):
        while True:
            compute(_next(connection), executor, loaded)


def _next(connection: Connection) -> object:
    from services.engine.cpu.threads import release_team

    if not connection.poll(IDLE_S):
        release_team()
    return connection.recv()


if __name__ == "__main__":
    main(int(sys.argv[1]))
