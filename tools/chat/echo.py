"""The terminal's echo, off while an answer is drawn: typed keys, ^C among them, would displace its lines."""

import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

LOCAL_FLAGS = 3  # the index in tcgetattr's list


@contextmanager
def no_echo() -> Iterator[None]:
    if not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    quiet = [*before]
    quiet[LOCAL_FLAGS] = before[LOCAL_FLAGS] & ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)
