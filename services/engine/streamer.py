"""Tokens in, readable text out: one streamer for each request, fed by the engine's thread."""

from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

from tokenizers.decoders import DecodeStream
from transformers import TextIteratorStreamer

from services.engine import stop_strings
from services.engine.base import FinishReason, Piece, SamplingParams, TokenLogprob

CONTEXT = 4  # prompt tokens the decoder sees first: some decoders drop a space at the very beginning of a text


class Decoder(Protocol):
    def step(self, token: int) -> str: ...


class FastDecoder:
    """The tokenizers library's incremental decoder: constant time a token, incomplete characters held back."""

    def __init__(self, tokenizer: Any, context: list[int]) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(context, skip_special_tokens=False)

    def step(self, token: int) -> str:
        try:
            return self._stream.step(self._tokenizer, token) or ""
        except Exception as error:  # the library has no class of its own for it
            if "Invalid prefix" not in str(error):
                raise
            # Byte-fallback decoders take back whole characters when bytes that fit nowhere follow them.
            self._stream = DecodeStream([], skip_special_tokens=False)
            return self._stream.step(self._tokenizer, token) or ""


class SlowDecoder:
    """The same for tokenizers written in Python: decodes a short window twice and takes the difference."""

    def __init__(self, tokenizer: Any, context: list[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(context)
        self._start = 0
        self._read = len(context)

    def step(self, token: int) -> str:
        self._tokens.append(token)
        before = self._decode(self._tokens[self._start : self._read])
        text = self._decode(self._tokens[self._start :])
        if len(text) <= len(before) or text.endswith("\ufffd"):
            return ""
        self._start, self._read = self._read, len(self._tokens)
        return text[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class TextLogprobs:
    """Tokens that became text together: several where each is part of a character."""

    start: int  # the place of their text in the answer
    tokens: list[TokenLogprob]


class RequestStreamer(TextIteratorStreamer):  # type: ignore[misc]
    """A TextIteratorStreamer that decodes each token once, ends at stop strings and carries token ids.

    The stock one decodes its whole cache again for every token, holds text back to the next space and knows neither
    stop strings nor ids. `put` collects; `take` hands over what became readable since, as one Piece.
    Special tokens stay in the text (tool and reasoning markers are special in several formats); only `eos` is dropped.
    """

    def __init__(self, tokenizer: Any, prompt: tuple[int, ...], params: SamplingParams, eos: frozenset[int]) -> None:
        super().__init__(tokenizer, skip_prompt=True)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        context = _context(backend or tokenizer, prompt)
        self._decoder: Decoder = FastDecoder(backend, context) if backend else SlowDecoder(tokenizer, context)
        self._params = params
        self._eos = eos
        self._ends = params.ends(eos)
        self._num_tokens = 0
        self._ready = ""  # readable, and no stop string can begin in it any more
        self._held = ""  # readable, but it may turn out to be the beginning of a stop string
        self._ids: list[int] = []
        self._unread: list[TokenLogprob] = []  # tokens that have become no text yet
        self._text_logprobs: deque[TextLogprobs] = deque()
        self._num_read = 0  # characters
        self._num_taken = 0
        self.finish: FinishReason | None = None
        self._stop: str | None = None  # the one that was found

    def put(self, value: int, logprob: TokenLogprob | None = None, *, is_end: bool = False) -> None:
        """`is_end`: the token has no text and ends the answer, whatever else is known of it."""
        has_text, is_end = self._has_text(value) and not is_end, is_end or value in self._ends
        self._ids.append(value)
        self._num_tokens += 1
        if logprob and (has_text or not is_end):
            self._unread.append(logprob)
        if has_text:
            self._read(self._decoder.step(value))
        if is_end:
            self.end("stop")

    def _read(self, text: str) -> None:
        if text and self._unread:
            self._text_logprobs.append(TextLogprobs(self._num_read, self._unread))
            self._unread = []
        self._num_read += len(text)
        self.on_finalized_text(text)

    def _has_text(self, token: int) -> bool:
        return token not in self._eos and (token not in self._ends or self._params.include_stop)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if self._num_tokens <= self._params.min_tokens:  # in what these say no stop string is looked for
            self._ready += text
            return
        text = self._held + text
        if found := stop_strings.first(text, self._params.stop):
            position, stop = found
            self._ready += text[: position + len(stop) if self._params.include_stop else position]
            self._held = ""
            self._unread = []
            self.finish, self._stop = "stop", stop
            return
        keep = 0 if stream_end else stop_strings.overlap(text, self._params.stop)
        self._ready += text[: len(text) - keep]
        self._held = text[len(text) - keep :]

    def end(self, reason: FinishReason = "length") -> None:
        self.on_finalized_text("", stream_end=True)
        self.finish = self.finish or reason

    def take(self) -> Piece | None:
        """What there is to say since the last call; None when that is nothing."""
        if not self._ready and not self.finish:
            return None
        piece = Piece(self._ready, tuple(self._ids), self.finish, self._logprobs(), stop=self._stop)
        self._ready, self._ids = "", []
        return piece

    def _logprobs(self) -> tuple[TokenLogprob, ...]:
        """Of the tokens of which some text is ready; at the end also of those that never became any."""
        self._num_taken += len(self._ready)
        logprobs: list[TokenLogprob] = []
        while self._text_logprobs and self._text_logprobs[0].start < self._num_taken:
            logprobs += self._text_logprobs.popleft().tokens
        return (*logprobs, *self._unread) if self.finish else tuple(logprobs)


def _context(tokenizer: Any, prompt: tuple[int, ...]) -> list[int]:
    """The end of the prompt in whole characters: half of one would come out again with the first token."""
    for size in range(CONTEXT, CONTEXT + 4):  # a character takes up to four tokens
        context = list(prompt[-size:])
        if not tokenizer.decode(context, skip_special_tokens=False).endswith("\ufffd"):
            return context
    return []
