"""Which of several servers takes a request: the one of its key, as long as that has not much more to do than others.

Rendezvous hashing: when a server comes or goes, only its own keys move.
"""

from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import TypeVar

GAP = 8  # requests that a server may have more than the least busy one,
FACTOR = 1.5  # and so many times as many

Server = TypeVar("Server")


def ranked(
    key: bytes, servers: Iterable[Server], name: Callable[[Server], str], load: Callable[[Server], int]
) -> list[Server]:
    """In the order in which they are to be tried: those that have far too much to do behind the others."""
    order = sorted(servers, key=lambda server: _rank(key, name(server)))
    least = min(map(load, order), default=0)
    return sorted(order, key=lambda server: load(server) > max(least + GAP, least * FACTOR))


def _rank(key: bytes, name: str) -> bytes:
    return blake2b(key, key=blake2b(name.encode(), digest_size=32).digest(), digest_size=8).digest()
