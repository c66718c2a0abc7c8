"""Guesses how a text goes on: as it went on the last time that its last words were said, in the prompt or since.

A guess costs no model, and to check four of them costs a step hardly more than to make one token: reading the weights
is what takes the time. Plain Python.
"""

NGRAM_SIZE = 3  # tokens that must be the same before a guess is made
MAX_DRAFT_TOKENS = 4  # tokens of a guess
MAX_STEP_TOKENS = 16  # tokens of a step, beyond which a step takes notably longer with each
MAX_BACKOFF = 64  # tokens without a guess, after many that were wrong


class NgramProposer:
    """Of one sequence. Who is often wrong is asked seldom."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], int] = {}  # the last words -> where the text went on after them
        self._num_read = 0
        self._penalty = 0  # tokens that will be skipped after the next wrong guess
        self._next = 0  # length of the text from which on a guess is made again

    def draft(self, tokens: list[int], most: int) -> tuple[int, ...]:
        """So many tokens; none where nothing like it was said before. What goes on in a circle does so in the guess."""
        if len(tokens) < self._next or most < 1:
            return ()
        self._read(tokens)
        at = self._seen.get(tuple(tokens[-NGRAM_SIZE:]))
        return tuple(tokens[at + i % (len(tokens) - at)] for i in range(most)) if at else ()

    def record_acceptance(self, num_right: int, length: int) -> None:
        """How many of the last guess were right, and how long the text is now."""
        self._penalty = 0 if num_right else min(2 * self._penalty + 1, MAX_BACKOFF)
        self._next = length + self._penalty

    def _read(self, tokens: list[int]) -> None:
        """All words but the last, of which nobody knows yet how they go on."""
        for end in range(max(self._num_read, NGRAM_SIZE), len(tokens)):
            self._seen[tuple(tokens[end - NGRAM_SIZE : end])] = end
        self._num_read = len(tokens)
