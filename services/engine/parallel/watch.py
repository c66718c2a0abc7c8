"""Notices when a process at the other end of a connection is gone, whatever ended it."""

import os
import select
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def wait_for_hangup(ends: Mapping[int, T]) -> T:
    """Blocks until the other end of a file descriptor is closed, and returns what belongs to it. Nothing is read."""
    poll = select.poll()
    for descriptor in ends:
        poll.register(descriptor, 0)  # errors and hang-ups alone
    while True:
        for descriptor, _ in poll.poll():
            return ends[descriptor]


def exit_with(descriptor: int) -> None:
    """Ends this process as soon as the other end is closed, in the middle of whatever it does."""
    wait_for_hangup({descriptor: None})
    os._exit(0)
