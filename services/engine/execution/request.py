"""A request on the engine's side: what is drawn for it becomes pieces of text."""

import time
from dataclasses import dataclass, replace

from services.engine.base import Piece, Times, TokenLogprob
from services.engine.execution.piece_stream import Mailbox
from services.engine.scheduling.sequence import Sequence
from services.engine.streamer import RequestStreamer


@dataclass(slots=True)
class Request:
    sequence: Sequence
    streamer: RequestStreamer
    mailbox: Mailbox
    submitted: float
    started: float = 0.0  # its first step; 0: not yet
    spoke: float = 0.0  # its first token
    told: bool = False  # a piece of it

    def say(self, token: int, logprob: TokenLogprob | None) -> Piece | None:
        """What is new to read, once the sequence has the token."""
        sequence, streamer = self.sequence, self.streamer
        streamer.put(token, logprob)
        if sequence.matcher and not streamer.finish:
            sequence.matcher.advance(token)
            if sequence.matcher.is_over:
                streamer.end("stop")
        if sequence.num_sampled >= sequence.max_tokens:
            streamer.end("length")
        sequence.finished = streamer.finish is not None
        return self._piece(time.monotonic())

    def _piece(self, now: float) -> Piece | None:
        self.spoke = self.spoke or now
        piece = self.streamer.take()
        if piece and (piece.finish or not self.told):
            self.told = True
            times = self._times(now) if piece.finish else None
            return replace(piece, cached_tokens=self.sequence.num_reused or 0, times=times)
        return piece

    def _times(self, now: float) -> Times:
        return Times(self.started - self.submitted, self.spoke - self.started, now - self.spoke)
