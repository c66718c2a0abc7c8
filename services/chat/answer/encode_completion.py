"""Events -> chunks of a legacy completion, or the one that they add up to."""

import time
from codecs import getincrementaldecoder
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from math import isnan

from schemas.completion_schema import Completion, CompletionChoice, CompletionLogprobs
from services.chat.answer.encode import ChunkOptions, add_options
from services.chat.answer.logprobs import bounded
from services.chat.answer.usage import UsageCounter, usage_of
from services.chat.events import ChoiceReply, Event, Finish, Head, Reply, Text
from services.engine.base import TokenLogprob


class ChunkEncoder:
    """Of one answer: text, then each finish alone; the usage last, or a null on each but that."""

    def __init__(self, options: ChunkOptions, clock: Callable[[], float] = time.perf_counter) -> None:
        self._options = options
        self._clock = clock
        self._offsets: defaultdict[int, _Offsets] = defaultdict(_Offsets)

    def chunks(self, event: Event) -> list[Completion]:
        match event:
            case Head():
                self._head = event
                self._frame = _frame(event)
                self._usage = UsageCounter(event)
            case Text() | Finish():
                return [self._event(event)]
        return []

    def end(self) -> list[Completion]:
        """After the last event."""
        return [self._last()] if self._options.usage and self._usage.is_whole else []

    def _event(self, event: Text | Finish) -> Completion:
        self._usage.add(event)
        if isinstance(event, Text):
            return self._chunk(event, event.text, event.logprobs)
        return self._chunk(event, "", finish=event)

    def _chunk(
        self, event: Text | Finish, text: str, logprobs: Sequence[TokenLogprob] = (), finish: Finish | None = None
    ) -> Completion:
        offsets = self._offsets[event.index]
        choice = CompletionChoice(
            text=text,
            index=event.index,
            logprobs=_logprobs(logprobs, offsets, self._options) if self._options.logprobs and logprobs else None,
            finish_reason=_reason(finish),
            arrival_time=round(self._clock() - self._head.arrived, 6),
        )
        if self._options.token_ids and event.token_ids:
            choice.token_ids = list(event.token_ids)
        chunk = self._frame.model_copy(update={"choices": [choice]})
        add_options(chunk, choice, self._options, self._usage)
        return chunk

    def _last(self) -> Completion:
        return self._frame.model_copy(update={"usage": self._usage.usage()})


def completion(reply: Reply, options: ChunkOptions, n: int) -> Completion:
    """`best_of`: the `n` likeliest choices of each prompt, likeliest first."""
    head = reply.head
    assert head
    prompts = [reply.choices[start : start + head.shares] for start in range(0, head.n, head.shares)]
    kept = [choice for choices in prompts for choice in _likeliest(choices, n)]
    answer = _frame(head)
    answer.choices = [_choice(index, choice, options) for index, choice in enumerate(kept)]
    answer.usage = usage_of(reply)
    return answer


def _likeliest(choices: Sequence[ChoiceReply], n: int) -> Sequence[ChoiceReply]:
    return choices if len(choices) == n else sorted(choices, key=_mean_logprob, reverse=True)[:n]


def _mean_logprob(reply: ChoiceReply) -> float:
    logprobs = [token.logprob for token in reply.logprobs]
    return sum(logprobs) / len(logprobs) if logprobs else 0.0


def _choice(index: int, reply: ChoiceReply, options: ChunkOptions) -> CompletionChoice:
    choice = CompletionChoice(
        text=reply.text,
        index=index,
        logprobs=_logprobs(reply.logprobs, _Offsets(), options) if options.logprobs else None,
        finish_reason=_reason(reply.finish),
    )
    if options.token_ids:
        choice.token_ids = reply.token_ids
    return choice


def _reason(finish: Finish | None) -> str | None:
    return finish.reason if finish else None


class _Offsets:
    """Where each token's text begins, in characters; those of one character's bytes begin where it does."""

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")(errors="replace")
        self._position = 0

    def next(self, token: TokenLogprob) -> int:
        start = self._position
        self._position += len(self._decoder.decode(token.raw))
        return start


def _logprobs(tokens: Iterable[TokenLogprob], offsets: _Offsets, options: ChunkOptions) -> CompletionLogprobs:
    """Among a token's alternatives is also itself, as with OpenAI: one more than asked for, if it is none of them."""
    tokens = list(tokens)
    name = _id_name if options.logprobs_by_id else _name
    return CompletionLogprobs(
        tokens=[name(token) for token in tokens],
        token_logprobs=[None if isnan(token.logprob) else bounded(token) for token in tokens],
        top_logprobs=[
            None if isnan(token.logprob) else {name(each): bounded(each) for each in (*token.top, token)}
            for token in tokens
        ],
        text_offset=[offsets.next(token) for token in tokens],
    )


def _name(token: TokenLogprob) -> str:
    """The text, or OpenAI's writing of bytes that are none by themselves: the keys of one dict must differ."""
    if "\ufffd" not in token.text:
        return token.text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.raw)


def _id_name(token: TokenLogprob) -> str:
    """As vLLM writes it. An engine may leave ids out; then it is the text."""
    return _name(token) if token.id is None else f"token_id:{token.id}"


def _frame(head: Head) -> Completion:
    return Completion(
        id=head.id,
        object="text_completion",
        created=head.created,
        model=head.model,
        choices=[],
        system_fingerprint=head.fingerprint,
    )
