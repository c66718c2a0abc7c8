"""A job on its way through the scheduler. Plain Python: no tensors."""

import os
from array import array
from dataclasses import dataclass, field
from hashlib import shake_128
from random import Random
from typing import Any

from services.engine.base import Job
from services.engine.scheduling.ngram_proposer import NgramProposer
from services.engine.scheduling.step import CacheKey, ImagePrompt


@dataclass(slots=True, eq=False)
class PrefixWait:
    """For tokens that another sequence is about to compute."""

    other: "Sequence"
    until: int  # that many of the other's are computed
    seen: int  # how many were, when it was last asked


@dataclass(slots=True, eq=False)
class Sequence:
    job: Job
    max_tokens: int  # of the answer, never beyond the model's length
    ends: frozenset[int] = frozenset()  # tokens of which each is the answer's last
    matcher: Any = None  # where its answer stands in its grammar, if it has one
    tokens: list[int] = field(init=False)  # the prompt, then what was sampled
    num_computed: int = 0  # leading tokens whose keys and values are cached
    slot: int | None = None  # its place in the cache, while it runs
    arrival: int = 0  # its number in the queue
    num_reused: int | None = None  # prompt tokens found in the cache when it was first admitted
    num_found: int = 0  # tokens found in the cache when it was last admitted
    num_known: int = 0  # tokens that it had then
    cache_key: CacheKey | None = None  # whose prefixes it may find; None: those of its owner and its salt
    wait: PrefixWait | None = None  # why it is not admitted yet, though there is room
    wait_budget: int = 8  # times that it will begin such a wait, or see the other stand still
    cancelled: bool = False
    finished: bool = False
    has_thought: bool = False  # and needs no limit any more
    random: Random = field(init=False)  # its own, so that a seed gives the same text in any company
    proposer: NgramProposer = field(default_factory=NgramProposer)
    prompt_logprobs: list[Any] = field(
        default_factory=list
    )  # the prompt's tokens behind the first, as they were weighed
    processors: Any = None  # what the sampler remembers of it, made when it is first asked for

    images: ImagePrompt | None = field(init=False, default=None)
    _prompt_keys: list[int] = field(init=False)  # with images only

    def __post_init__(self) -> None:
        self.tokens = list(self.job.prompt)
        self.cache_key = self.cache_key or CacheKey(self.job.owner, self.job.cache_salt)
        self._prompt_keys = _keys(self.job) if self.job.images else []
        if self.job.images:
            self.images = ImagePrompt(self.job.prompt, self.job.images, self.cache_key)
        self.random = Random(self.job.sampling.seed)

    def keys(self, start: int = 0, end: int | None = None) -> list[int]:
        """What tells its tokens from others: themselves, but what is on an image instead of its placeholders."""
        if not self.job.images:
            return self.tokens[start:end]
        first, last, _ = slice(start, end).indices(len(self.tokens))
        return self._prompt_keys[first:last] + self.tokens[max(first, len(self._prompt_keys)) : last]

    @property
    def num_written(self) -> int:
        """Tokens sampled since it was last admitted."""
        return len(self.tokens) - self.num_known

    @property
    def num_sampled(self) -> int:
        return len(self.tokens) - len(self.job.prompt)

    def force_token(self, drawn: int) -> int:
        """The next token: what was drawn, or the end of thinking that has taken too long."""
        limit = self.job.sampling.thinking
        if limit is None or self.has_thought or (limit.begin is not None and self.num_sampled == 0):
            return drawn
        num_thought = self.num_sampled - (limit.begin is not None)
        return limit.end if num_thought >= limit.tokens else drawn

    def append(self, token: int) -> None:
        limit = self.job.sampling.thinking
        if limit and not self.has_thought:
            begins = limit.begin is not None and self.num_sampled == 0
            self.has_thought = token != limit.begin if begins else token == limit.end
        self.tokens.append(token)
        self.finished = token in self.ends or self.num_sampled >= self.max_tokens

    def rewind(self) -> None:
        """As if it had not been tried to draw its next token."""
        self.num_computed = len(self.tokens) - 1
        self.random = Random(self.job.sampling.seed)
        for _ in range(self.num_sampled):  # a number each
            self.random.random()

    @property
    def num_left(self) -> int:
        """Tokens that the answer may still have."""
        return self.max_tokens - self.num_sampled

    @property
    def num_pending(self) -> int:
        """Tokens still to be computed: 1 while decoding, more while the prompt is being read."""
        return len(self.tokens) - self.num_computed

    @property
    def is_over(self) -> bool:
        return self.cancelled or self.finished


SALT = os.urandom(16)  # nobody can look for two images with the same keys


def _keys(job: Job) -> list[int]:
    """Negative ones for images, each of its tokens with its own: no token is like them, and 31 bits add up."""
    keys = list(job.prompt)
    for placed in job.images:
        digest = shake_128(SALT + placed.image.digest).digest(4 * len(placed.positions))
        for position, key in zip(placed.positions, array("I", digest), strict=True):
            keys[position] = -1 - (key >> 1)
    return keys
