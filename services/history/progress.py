"""How far a background answer is stored: from there another process goes on with it.

Stored are its events and the engine's pieces that they were made of, in one row. The same pieces make the same events,
so a second writer parses the stored pieces again, leaves out the events that are stored, and lets the engine go on
behind the tokens of the last piece.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, replace
from typing import Any

import orjson

from services.engine.base import Job, Piece, Times, TokenLogprob
from services.errors import Unavailable

INTERRUPTED = "The answer was interrupted"


class Progress:
    """`attempt`, `last_event` and `pieces` are those that are stored."""

    def __init__(
        self, attempt: int = 0, last_event: int = -1, pieces: Sequence[Piece] = (), *, is_claimable: bool = True
    ) -> None:
        self.is_claimable = is_claimable  # by another process, which needs the request for it
        self.attempt = attempt
        self.last_event = last_event
        self._stored = tuple(pieces)
        self._unsaved: list[Piece] = []

    def remaining(self, jobs: Sequence[Job], *, resumes: bool) -> Sequence[Job]:
        """What is left to be computed of these jobs. `resumes`: whether the engine goes on behind sampled tokens."""
        if not self._stored:
            return jobs
        if self._stored[-1].finish or not resumes:
            return ()
        tokens = tuple(token for piece in self._stored for token in piece.token_ids)
        return [replace(job, sampled=tokens) for job in jobs]

    def pieces(self, streams: Sequence[AsyncGenerator[Piece, None]]) -> list[AsyncGenerator[Piece, None]]:
        """The stored pieces, then those of the stream."""
        return [self._pieces(*streams)]

    async def _pieces(self, stream: AsyncGenerator[Piece, None] | None = None) -> AsyncGenerator[Piece, None]:
        for piece in self._stored:
            yield piece
        if stream is None:
            if not self._stored[-1].finish:
                raise Unavailable(INTERRUPTED)
            return
        async for piece in stream:
            self._unsaved.append(piece)  # before its events: whatever event is stored, its piece is
            yield piece

    def unsaved(self) -> list[Piece]:
        return list(self._unsaved)

    def mark_saved(self, pieces: Sequence[Piece]) -> None:
        del self._unsaved[: len(pieces)]


def packed(pieces: Sequence[Piece]) -> str | None:
    return orjson.dumps(list(map(_record, pieces))).decode() if pieces else None


def unpacked(batches: Sequence[str]) -> list[Piece]:
    return [_piece(record) for batch in batches for record in orjson.loads(batch)]


def _record(piece: Piece) -> dict[str, Any]:
    record: dict[str, Any] = {"text": piece.text, "ids": piece.token_ids}
    if piece.logprobs:
        record["logprobs"] = [_logprob_record(each) for each in piece.logprobs]
    if piece.cached_tokens:
        record["cached"] = piece.cached_tokens
    if piece.finish:
        record |= {"finish": piece.finish, "stop": piece.stop, "times": asdict(piece.times) if piece.times else None}
    return record


def _piece(record: dict[str, Any]) -> Piece:
    times = record.get("times")
    return Piece(
        record["text"],
        tuple(record["ids"]),
        record.get("finish"),
        tuple(map(_logprob, record.get("logprobs", ()))),
        record.get("cached", 0),
        Times(**times) if times else None,
        record.get("stop"),
    )


def _logprob_record(token: TokenLogprob) -> list[Any]:
    return [token.text, token.raw.hex(), token.logprob, [_logprob_record(each) for each in token.top], token.id]


def _logprob(record: list[Any]) -> TokenLogprob:
    text, raw, logprob, top, id = record
    return TokenLogprob(text, bytes.fromhex(raw), logprob, tuple(map(_logprob, top)), id)
