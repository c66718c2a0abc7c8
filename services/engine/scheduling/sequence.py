"""A sequence: a job in the scheduler, with the tokens it has and its place in the cache. No tensors."""

import os
from array import array
from dataclasses import dataclass, field, replace
from hashlib import shake_128
from random import Random
from typing import Any

from services.engine.base import Job
from services.engine.scheduling.ngram_proposer import NgramProposer
from services.engine.scheduling.step import CacheKey, ImagePrompt


@dataclass(slots=True, eq=False)
class PrefixWait:
    """For a prefix that another sequence is computing."""

    other: "Sequence"
    until: int  # tokens that the other has computed by then
    seen: int  # tokens that it had computed when this was last checked


@dataclass(slots=True, eq=False)
class Sequence:
    job: Job
    max_tokens: int  # to be generated, within the model's length
    ends: frozenset[int] = frozenset()  # the tokens that end it
    matcher: Any = None  # the state of its grammar, if it has one
    tokens: list[int] = field(init=False)  # the prompt, then the sampled ones
    num_computed: int = 0  # leading tokens whose keys and values are cached
    slot: int | None = None  # in the cache, while it runs
    arrival: int = 0  # its number in the queue
    num_reused: int | None = None  # prompt tokens found in the cache when it was first admitted
    num_found: int = 0  # tokens found in the cache when it was last admitted
    num_known: int = 0  # tokens that it had when it was last admitted
    cache_key: CacheKey | None = None  # None: of its owner and its salt
    wait: PrefixWait | None = None  # why it is not admitted though there is room
    wait_budget: int = 8  # how often it may begin to wait, or find no progress
    cancelled: bool = False
    finished: bool = False
    reasoning_ended: bool = False
    random: Random = field(init=False)  # of its own: a seed gives the same text in any batch
    proposer: NgramProposer = field(default_factory=NgramProposer)
    prompt_logprobs: list[Any] = field(
        default_factory=list
    )  # the prompt's tokens behind the first, as they were weighed
    processors: Any = None  # its LogitsProcessors, made at their first use

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
        """What the prefix cache compares: the tokens, and for image placeholders the content of the image."""
        if not self.job.images:
            return self.tokens[start:end]
        first, last, _ = slice(start, end).indices(len(self.tokens))
        return self._prompt_keys[first:last] + self.tokens[max(first, len(self._prompt_keys)) : last]

    @property
    def is_long(self) -> bool:
        """Whether it is rotated by the long factors of LongRoPE."""
        return self.cache_key is not None and self.cache_key.is_long

    @property
    def is_scored(self) -> bool:
        """Whether the logprobs of its prompt are wanted: cached tokens have no logits."""
        return self.job.sampling.prompt_logprobs is not None

    @property
    def adapter(self) -> int | None:
        return self.cache_key.adapter if self.cache_key else None

    @property
    def num_written(self) -> int:
        """Tokens sampled since it was last admitted."""
        return len(self.tokens) - self.num_known

    @property
    def num_sampled(self) -> int:
        return len(self.tokens) - len(self.job.prompt)

    def force_token(self, sampled: int) -> int:
        """The next token: the sampled one, or the end of reasoning where its limit is reached."""
        limit = self.job.sampling.thinking
        if limit is None or self.reasoning_ended or (limit.begin is not None and self.num_sampled == 0):
            return sampled
        num_reasoning = self.num_sampled - (limit.begin is not None)
        return limit.end if num_reasoning >= limit.tokens else sampled

    def append(self, token: int) -> None:
        limit = self.job.sampling.thinking
        if limit and not self.reasoning_ended:
            begins = limit.begin is not None and self.num_sampled == 0
            self.reasoning_ended = token != limit.begin if begins else token == limit.end
        self.tokens.append(token)
        self.finished = token in self.ends or self.num_sampled >= self.max_tokens

    def lengthen(self) -> None:
        """From now on it is rotated by the long factors, and shares no cache with shorter ones."""
        assert self.cache_key
        self.cache_key = replace(self.cache_key, is_long=True)

    def rewind(self) -> None:
        """Undoes an attempt to sample its next token."""
        self.num_computed = len(self.tokens) - 1
        self.random = Random(self.job.sampling.seed)
        for _ in range(self.num_sampled):  # one number a token
            self.random.random()

    @property
    def num_left(self) -> int:
        """Tokens that may still be sampled."""
        return self.max_tokens - self.num_sampled

    @property
    def num_pending(self) -> int:
        """Tokens still to be computed: 1 while decoding, more during prefill."""
        return len(self.tokens) - self.num_computed

    @property
    def is_over(self) -> bool:
        return self.cancelled or self.finished


SALT = os.urandom(16)  # so that nobody can construct two images with the same keys


def _keys(job: Job) -> list[int]:
    """Negative ones for the tokens of images, each with 31 bits of its own: no token id equals them."""
    keys = list(job.prompt)
    for placed in job.images:
        digest = shake_128(SALT + placed.image.digest).digest(4 * len(placed.positions))
        for position, key in zip(placed.positions, array("I", digest), strict=True):
            keys[position] = -1 - (key >> 1)
    return keys
