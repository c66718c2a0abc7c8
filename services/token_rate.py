"""Tokens a second, over the last whole seconds."""

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 5


class TokenRate:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: deque[tuple[int, int]] = deque(maxlen=WINDOW_S + 1)  # a second, and the tokens in it

    def add(self, tokens: int) -> None:
        now = int(self._clock())
        if tokens <= 0:
            return
        if self._seconds and self._seconds[-1][0] == now:
            tokens += self._seconds.pop()[1]
        self._seconds.append((now, tokens))

    @property
    def per_second(self) -> float:
        """Not of the second that runs: it is not whole."""
        now = int(self._clock())
        return sum(tokens for second, tokens in self._seconds if now - WINDOW_S <= second < now) / WINDOW_S
