"""One job on its way: sent to an upstream, to another if that one fails before the first token, and read as pieces."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from math import nan

from services.engine.base import Piece, Times, TokenLogprob
from services.engine.execution.piece_stream import Mailbox
from services.engine.remote.kinds.base import Output, OutputToken, RemoteJob
from services.engine.remote.router import Router
from services.engine.remote.thinking import answering
from services.engine.remote.upstream import Upstream
from services.engine.streamer import RequestStreamer
from services.errors import EngineFailed, Overloaded, ServiceError, Unavailable

logger = logging.getLogger(__name__)

# Refusals come within this time, some as a first event; what takes longer is a long prompt, and the client should hear
# that it was taken.
ADMISSION_S = 2.0
LAST_EVENTS = 2  # that may follow the token that ends an answer: the finish, and what was used


class Answer:
    def __init__(self, job: RemoteJob, streamer: RequestStreamer, router: Router, on_end: Callable[["Answer"], None]):
        self.mailbox = Mailbox()
        self.has_output = False
        self.cached_tokens = 0
        self.num_prompt = len(job.job.prompt)
        self._job = job
        self._streamer = streamer
        self._router = router
        self._on_end = on_end
        self._admission: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self._prompt: tuple[TokenLogprob, ...] = ()
        self._last: Piece | None = None  # the finishing one, until the upstream has told all
        self._events_left = LAST_EVENTS
        self._submitted = self._opened = self._first = time.monotonic()

    @property
    def id(self) -> str:
        return self._job.job.id

    async def admitted(self, *, wait: bool) -> None:
        """Returns once an upstream has begun to answer, or may have; raises its refusal. `wait`: whether it is waited
        for."""
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda task: self._on_end(self))
        try:
            await asyncio.wait([self._admission], timeout=ADMISSION_S if wait else 0)
        except BaseException:
            self.cancel()
            if self._admission.done() and not self._admission.cancelled():
                self._admission.exception()  # nobody is there to be told
            raise
        if self._admission.done():
            self._admission.result()
        else:
            self._admission.cancel()  # errors go to the mailbox from here on

    def cancel(self) -> None:
        """Ends the request at the upstream, too. Does nothing to an answer that is complete."""
        if self._task and not self._task.done() and not self._is_delivered:
            self._admission.cancel()
            self._task.cancel()

    async def fail(self, error: ServiceError) -> None:
        """Ends it with an error."""
        if self._task and not self._task.done():
            self._report(error)
            self._task.cancel()
            await asyncio.wait([self._task])

    async def settle(self) -> None:
        """Returns once nothing of it runs."""
        if self._task:
            await asyncio.wait([self._task])

    @property
    def _is_delivered(self) -> bool:
        return self._last is not None and self._events_left < 0

    async def _run(self) -> None:
        try:
            await self._answer()
        except ServiceError as error:
            self._report(error)
        except Exception:
            logger.exception("request %s failed", self._job.job.id)
            self._report(EngineFailed("The engine failed"))

    def _report(self, error: ServiceError) -> None:
        if self._admission.done():
            self.mailbox.put_nowait(error)
        else:
            self._admission.set_exception(error)

    async def _answer(self) -> None:
        *others, last = self._router.candidates(self._job.job)
        for upstream in others:
            try:
                await self._read(upstream)
                return
            except (Unavailable, Overloaded):
                if self.has_output:
                    raise
        await self._read(last)

    async def _read(self, upstream: Upstream) -> None:
        try:
            async with answering(upstream, self._job) as outputs:
                await self._read_outputs(outputs)
        except ServiceError:
            if self._last is None:  # else only what comes behind the answer is missing
                raise
        self._deliver_last()

    async def _read_outputs(self, outputs: AsyncGenerator[Output, None]) -> None:
        self._opened = time.monotonic()
        async for output in outputs:
            if not self._admission.done():
                self._admission.set_result(None)
            self._add(output)
            if self._last and (self._last.stop is not None or self._events_left == 0):
                return

    def _add(self, output: Output) -> None:
        if output.cached_tokens is not None:
            self.cached_tokens = output.cached_tokens
        if output.prompt:
            self._prompt = tuple(map(self._logprob, output.prompt))
        if self._last:
            self._events_left -= 1
            return
        for token in output.tokens:
            self._put(token)
            if self._streamer.finish:
                break
        if output.finish and not self._streamer.finish:
            self._streamer.end(output.finish)
        piece = self._streamer.take()
        if piece and piece.finish:
            self._last = piece
        elif piece:
            self._deliver(piece)

    def _put(self, token: OutputToken) -> None:
        if not self.has_output:
            self.has_output, self._first = True, time.monotonic()
        has_logprob = token.logprob is not None and self._job.job.sampling.logprobs is not None
        self._streamer.put(token.id, self._logprob(token) if has_logprob else None, is_end=token.is_end)

    def _logprob(self, token: OutputToken) -> TokenLogprob:
        named = self._job.texts.named
        top = tuple(named(each, logprob) for each, logprob in token.top)
        return named(token.id, nan if token.logprob is None else token.logprob, top)

    def _deliver(self, piece: Piece) -> None:
        if self._prompt:
            piece, self._prompt = replace(piece, prompt=self._prompt), ()
        self.mailbox.put_nowait(piece)

    def _deliver_last(self) -> None:
        assert self._last  # an upstream's answer has a finish
        now = time.monotonic()
        first = self._first if self.has_output else now
        times = Times(self._opened - self._submitted, first - self._opened, now - first)
        self._events_left = -1
        self._deliver(replace(self._last, cached_tokens=self.cached_tokens, times=times))
