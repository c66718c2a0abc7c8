"""Speculative decoding by prompt lookup: proposes the tokens that followed the last n-gram where it occurred before.

Draft tokens cost no model, and a step that verifies four of them takes hardly longer than one that samples one:
reading the weights is what takes the time.
"""

NGRAM_SIZE = 3  # tokens that must match
MAX_DRAFT_TOKENS = 4  # of one sequence in one step
MAX_STEP_TOKENS = 16  # of a step with drafts: beyond, each takes notably longer
MAX_BACKOFF = 64  # tokens without a draft, after many that were rejected


class NgramProposer:
    """Of one sequence. Backs off after rejected drafts."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], int] = {}  # an n-gram -> the position after it
        self._num_read = 0
        self._penalty = 0  # tokens to be skipped after the next rejected draft
        self._next = 0  # length of the text from which on drafts are proposed again

    def draft(self, tokens: list[int], most: int) -> tuple[int, ...]:
        """At most `most` tokens; none where the n-gram is new. A text that repeats itself is repeated in the draft."""
        if len(tokens) < self._next or most < 1:
            return ()
        self._read(tokens)
        at = self._seen.get(tuple(tokens[-NGRAM_SIZE:]))
        return tuple(tokens[at + i % (len(tokens) - at)] for i in range(most)) if at else ()

    def record_acceptance(self, num_accepted: int, length: int) -> None:
        """Of the last draft. `length`: of the text now."""
        self._penalty = 0 if num_accepted else min(2 * self._penalty + 1, MAX_BACKOFF)
        self._next = length + self._penalty

    def _read(self, tokens: list[int]) -> None:
        """Indexes all n-grams but the last, which nothing follows yet."""
        for end in range(max(self._num_read, NGRAM_SIZE), len(tokens)):
            self._seen[tuple(tokens[end - NGRAM_SIZE : end])] = end
        self._num_read = len(tokens)
