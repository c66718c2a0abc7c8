"""A request inside the engine: turns its sampled tokens into pieces of text."""

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
    submitted_at: float
    started_at: float = 0.0  # its first step; 0: not yet
    first_token_at: float = 0.0
    has_output: bool = False  # whether a piece was delivered
    closed: bool = False  # the event loop's: nobody reads the stream any more

    def append(self, token: int, logprob: TokenLogprob | None) -> Piece | None:
        """The text that became readable with the token; the sequence has the token already."""
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
        self.first_token_at = self.first_token_at or now
        piece = self.streamer.take()
        if piece and (piece.finish or not self.has_output):
            self.has_output = True
            times = self._times(now) if piece.finish else None
            return replace(piece, cached_tokens=self.sequence.num_reused or 0, times=times)
        return piece

    def _times(self, now: float) -> Times:
        return Times(
            self.started_at - self.submitted_at, self.first_token_at - self.started_at, now - self.first_token_at
        )
