"""A limit to thinking, of servers that know none: the answer is asked for in two parts.

The first is as long as thinking may be. If it ends within thinking, the token that ends it is put behind, and the
second goes on from there; the server has the first in its prefix cache.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

from services.engine.base import ThinkingLimit
from services.engine.remote.kinds.base import Output, OutputToken, RemoteJob
from services.engine.remote.upstream import Upstream
from services.errors import UnsupportedParameter

PARAM = "thinking_token_budget"
TOGETHER = "does not go with '%s' where another server computes"


@asynccontextmanager
async def answering(upstream: Upstream, job: RemoteJob) -> AsyncIterator[AsyncGenerator[Output, None]]:
    """As `Upstream.answering`, with the job's limit to thinking."""
    limit = job.job.sampling.thinking
    if limit is None:
        async with upstream.answering(job) as outputs:
            yield outputs
        return
    budget = ThinkingBudget(job, limit)
    forced = () if budget.length else budget.force()
    first = budget.part(budget.length or budget.left)
    async with (
        upstream.answering(first) as outputs,
        aclosing(_continued(upstream, budget, forced, outputs)) as whole,
    ):
        yield whole


async def _continued(
    upstream: Upstream,
    budget: "ThinkingBudget",
    forced: tuple[OutputToken, ...],
    first: AsyncGenerator[Output, None],
) -> AsyncGenerator[Output, None]:
    if forced:
        yield Output(forced)
    is_cut = False
    async for output in first:
        budget.add(output.tokens)
        is_cut = is_cut or output.finish == "length"
        yield replace(output, finish=None) if is_cut else output
    if not is_cut:
        return
    if forced := budget.force():
        yield Output(forced)
    if not budget.left:
        yield Output(finish="length")
        return
    async with upstream.answering(budget.part(budget.left)) as rest:
        async for output in rest:
            yield replace(output, cached_tokens=None)  # it finds the first part there


class ThinkingBudget:
    """Of one answer: counts its tokens."""

    def __init__(self, job: RemoteJob, limit: ThinkingLimit) -> None:
        """Raises UnsupportedParameter for what would forget its state between the parts."""
        sampling = job.job.sampling
        stateful = {
            "frequency_penalty": sampling.frequency_penalty != 0,
            "presence_penalty": sampling.presence_penalty != 0,
            sampling.grammar.param if sampling.grammar else "": sampling.grammar is not None,
        }
        for name, is_given in stateful.items():
            if is_given:
                raise UnsupportedParameter(PARAM, TOGETHER, name)
        self._job = job
        self._limit = limit
        self._tokens: list[int] = []
        self._is_over = False  # thinking
        self.length = min(job.max_tokens, limit.tokens + (limit.begin is not None))  # of the first part

    @property
    def left(self) -> int:
        """Tokens that the answer may still have."""
        return self._job.max_tokens - len(self._tokens)

    def add(self, tokens: tuple[OutputToken, ...]) -> None:
        limit = self._limit
        for token in tokens:
            if not self._is_over:
                begins = limit.begin is not None and not self._tokens
                self._is_over = token.id != limit.begin if begins else token.id == limit.end
            self._tokens.append(token.id)

    def force(self) -> tuple[OutputToken, ...]:
        """The token that ends thinking, if that is not over and there is room for it."""
        if self._is_over or not self.left:
            return ()
        forced = (OutputToken(self._limit.end),)
        self.add(forced)
        return forced

    def part(self, length: int) -> RemoteJob:
        """The job from here on."""
        job = self._job.job
        min_tokens = min(length, max(0, job.sampling.min_tokens - len(self._tokens)))
        sampling = replace(job.sampling, thinking=None, min_tokens=min_tokens)
        prompt = (*job.prompt, *self._tokens)
        return replace(self._job, job=replace(job, prompt=prompt, sampling=sampling), max_tokens=length)
