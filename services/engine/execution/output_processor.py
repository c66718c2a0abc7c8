"""Sampled tokens to deliveries: detokenization, logprobs by their text, and the errors of single requests."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import nan

from services.engine.base import Piece, TokenLogprob
from services.engine.execution.piece_stream import Mailbox
from services.engine.execution.request import Request
from services.engine.sampling.logprobs import TokenLogprobs
from services.engine.scheduling.sequence import Sequence
from services.engine.token_texts import TokenTexts
from services.errors import ServiceError

logger = logging.getLogger(__name__)

Delivery = tuple[Mailbox, Piece | ServiceError]


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token that its sequence has, and that was not delivered yet."""

    request: Request
    token: int
    logprobs: TokenLogprobs | None


class OutputProcessor:
    """`deliver` is called once for all that a step delivers."""

    def __init__(self, texts: TokenTexts, deliver: Callable[[list[Delivery]], None]) -> None:
        self.requests: dict[Sequence, Request] = {}
        self._texts = texts
        self._deliver = deliver
        self._pending: list[SampledToken] = []

    def append(self, sequence: Sequence, token: int, logprobs: TokenLogprobs | None) -> None:
        self._pending.append(SampledToken(self.requests[sequence], token, logprobs))

    def emit(self) -> list[Sequence]:
        """Delivers the text of all pending tokens. Returns the sequences whose tokens could not be decoded."""
        pending, self._pending = self._pending, []
        deliveries: list[Delivery] = []
        broken = []
        for sampled in pending:
            try:
                piece = self._piece(sampled)
            except Exception:  # one request's text must not cost the others theirs
                logger.exception("no text for a token of request %s", sampled.request.sequence.job.id)
                broken.append(sampled.request.sequence)
            else:
                if piece:
                    deliveries.append((sampled.request.mailbox, piece))
        self._deliver(deliveries)
        return broken

    def discard(self) -> None:
        """Forgets the pending tokens."""
        self._pending = []

    def end(self, sequences: Iterable[Sequence], error: ServiceError) -> None:
        requests = [self.requests.pop(sequence) for sequence in sequences if sequence in self.requests]
        self._deliver([(request.mailbox, error) for request in requests])

    def forget_finished(self) -> None:
        """A sequence that finished since the batch was made has its slot until the next one is made."""
        for sequence in [each for each in self.requests if each.is_over and each.slot is None]:
            del self.requests[sequence]

    def _piece(self, sampled: SampledToken) -> Piece | None:
        request = sampled.request
        is_first = not request.has_output
        logprob = None if sampled.logprobs is None else self._token_logprob(sampled.token, sampled.logprobs)
        piece = request.append(sampled.token, logprob)
        if piece and is_first and request.sequence.job.sampling.prompt_logprobs is not None:
            return replace(piece, prompt=self._prompt_logprobs(request.sequence))
        return piece

    def _prompt_logprobs(self, sequence: Sequence) -> tuple[TokenLogprob, ...]:
        first, *others = sequence.job.prompt
        computed, sequence.prompt_logprobs = sequence.prompt_logprobs, []
        named = [self._token_logprob(token, each) for token, each in zip(others, computed, strict=True)]
        return (self._texts.named(first, nan), *named)

    def _token_logprob(self, token: int, logprobs: TokenLogprobs) -> TokenLogprob:
        top = tuple(map(self._texts.named, logprobs.ids, logprobs.logprobs))
        return self._texts.named(token, logprobs.logprob, top)
