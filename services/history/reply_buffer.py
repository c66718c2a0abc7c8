"""Accumulates a streamed reply. Events are folded into items when the output is read: a fold per token is too slow."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, groupby

from services.chat.answer.output import OutputItems
from services.chat.answer.output import status as item_status
from services.chat.events import Arguments, Compacting, Event, Finish, Head, Reasoning, Reply, Text
from services.chat.items import Item

TextEvent = Text | Reasoning | Arguments


class ReplyBuffer:
    def __init__(self, reply_id: str, *, logprobs: bool) -> None:
        self._reply_id = reply_id
        self._logprobs = logprobs  # in the items
        self._unfolded: list[Event] = []
        self._reply = Reply()
        self._outputs: list[OutputItems] = []

    def add(self, event: Event) -> None:
        self._unfolded.append(event)

    @property
    def reply(self) -> Reply:
        self._fold()
        return self._reply

    @property
    def output(self) -> list[list[Item]]:
        """Items received so far, by choice."""
        self._fold()
        return [output.items for output in self._outputs]

    def finish(self) -> list[list[Item]]:
        """Final items by choice; no event follows."""
        finishes = [each.finish for each in self.reply.choices]
        return [output.end(item_status(end)) for output, end in zip(self._outputs, finishes, strict=False)]

    def _fold(self) -> None:
        events, self._unfolded = self._unfolded, []
        for event in merge_runs(events):
            self._reply.add(event)
            match event:
                case Head(n=n):
                    # item ids derive from the answer's id; those of further choices must differ
                    names = [self._reply_id, *(f"{self._reply_id}c{index}" for index in range(1, n))]
                    self._outputs = [OutputItems(name, logprobs=self._logprobs) for name in names]
                case Finish() | Compacting():
                    pass
                case _:
                    self._outputs[event.index].add(event)


def merge_runs(events: Iterable[Event]) -> Iterator[Event]:
    """Merges consecutive text events of the same kind, choice and call into one."""
    for (kind, *_), same in groupby(events, _kind):
        run = list(same)
        if len(run) > 1 and issubclass(kind, TextEvent):
            yield _merged(run)  # type: ignore[arg-type]  # all events of a run have that kind
        else:
            yield from run


def _kind(event: Event) -> tuple[type[Event], int | None, int | None]:
    return type(event), getattr(event, "index", None), getattr(event, "call", None)


def _merged(run: Sequence[TextEvent]) -> TextEvent:
    return replace(
        run[0],
        text="".join([each.text for each in run]),
        token_ids=tuple(chain.from_iterable(each.token_ids for each in run)),
        logprobs=tuple(chain.from_iterable(each.logprobs for each in run)),
    )
