"""Legacy completions: plain text through the same pipeline as chat, without template and history."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from uuid import uuid4

from schemas.completion_schema import Completion, CompletionRequest
from services import tracing
from services.chat.answer import encode_completion
from services.chat.answer.encode import chunk_options
from services.chat.events import Event, Head, reply_of
from services.chat.formats.base import OutputFormat
from services.chat.parsing.channels import events
from services.chat.request import completion, sampling
from services.engine.base import Engine, GrammarSpec
from services.history.usage import UsageMeter
from services.history.usage_ledger import UsageLedger
from services.limit_service import UNLIMITED, Limiter
from services.metrics_service import Metrics
from services.model_service import Lease, ModelManager
from services.text_service import TextService
from services.trace_service import traced_completion


class CompletionService:
    def __init__(
        self,
        models: ModelManager,
        metrics: Metrics,
        ledger: UsageLedger,
        limits: Limiter = UNLIMITED,
        texts: TextService | None = None,
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._ledger = ledger
        self._limits = limits
        self._texts = texts or TextService()

    def unknown_keys(self, request: CompletionRequest) -> list[str]:
        """Keys that are not in the API."""
        return completion.unknown_keys(request)

    async def create(self, request: CompletionRequest, owner: str) -> Completion:
        reply = await reply_of(self.run(request, owner))
        return encode_completion.completion(reply, chunk_options(request), request.n)

    async def stream(self, request: CompletionRequest, owner: str) -> AsyncGenerator[Completion, None]:
        """The first step raises the errors of the request; a chunk means that it was admitted."""
        encoder = encode_completion.ChunkEncoder(chunk_options(request))
        async with aclosing(self.run(request, owner)) as run:
            async for event in run:
                for chunk in encoder.chunks(event):
                    yield chunk
        for chunk in encoder.end():
            yield chunk

    def run(self, request: CompletionRequest, owner: str) -> AsyncGenerator[Event, None]:
        """A Head, then the events of the answer."""
        return traced_completion(self._run(request, owner), request)

    async def _run(self, request: CompletionRequest, owner: str) -> AsyncGenerator[Event, None]:
        arrived = time.perf_counter()
        answer = completion.check(request)
        async with self._models.lease(request.model) as model:
            timer = self._metrics.answer(model.id)
            request = sampling.apply_defaults(request, model.sampling)
            with tracing.step("prepare"):
                made = await self._jobs(request, model.engine, owner, answer)
            submitted = time.perf_counter()
            meter, num_answers = UsageMeter(model.id), len(made.jobs)
            async with (
                self._limits.reserved(
                    model.id, sum(made.prompts), num_answers * (request.max_tokens or 0)
                ) as reservation,
                model.submitted(made.jobs) as streams,
            ):
                head = _head(made, model, arrived=arrived, submitted=submitted)
                parsed = events(head, streams, made.echoes, OutputFormat(prompt_only=request.max_tokens == 0))
                async with self._ledger.measured(meter), aclosing(parsed):
                    try:
                        async for event in parsed:
                            timer.add(event)
                            meter.add(event)
                            yield event
                    finally:
                        timer.end()
                        reservation.used = meter.tokens

    async def _jobs(
        self, request: CompletionRequest, engine: Engine, owner: str, answer: GrammarSpec | None
    ) -> completion.Jobs:
        texts = [prompt for prompt in request.prompts if isinstance(prompt, str)]
        size = sum(len(text) + len(request.suffix or "") for text in texts)
        async with self._texts.room(size):
            # in a thread: tokenising long prompts would stall every other stream
            return await asyncio.to_thread(
                completion.jobs, f"cmpl-{uuid4().hex}", request, engine.tokenizer, engine.max_length, owner, answer
            )


def _head(made: completion.Jobs, model: Lease, *, arrived: float, submitted: float) -> Head:
    return Head(
        id=made.jobs[0].id,
        created=int(time.time()),
        model=model.name,
        fingerprint=model.fingerprint,
        conversation_id=None,
        arrived=arrived,
        submitted=submitted,
        prompt_tokens=sum(made.prompts),
        truncated=made.truncated,
        prompts=made.prompts,
        n=len(made.jobs),
    )
