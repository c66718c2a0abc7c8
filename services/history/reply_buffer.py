"""What a turn has heard of its answer: kept as it comes, folded when it is asked for. Each token would cost a fold."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, groupby

from services.chat.answer.output import Output
from services.chat.answer.output import status as item_status
from services.chat.events import Arguments, Event, Finish, Head, Reasoning, Reply, Text
from services.chat.items import Item

Words = Text | Reasoning | Arguments


class ReplyBuffer:
    def __init__(self, reply_id: str, *, logprobs: bool) -> None:
        self._reply_id = reply_id
        self._logprobs = logprobs  # in the items
        self._new: list[Event] = []
        self._reply = Reply()
        self._outputs: list[Output] = []

    def add(self, event: Event) -> None:
        self._new.append(event)

    @property
    def reply(self) -> Reply:
        self._fold()
        return self._reply

    @property
    def said(self) -> list[list[Item]]:
        """So far, by choice."""
        self._fold()
        return [output.items for output in self._outputs]

    def end(self) -> list[list[Item]]:
        """By choice; nothing more will come."""
        finishes = [each.finish for each in self.reply.choices]
        return [output.end(item_status(end)) for output, end in zip(self._outputs, finishes, strict=False)]

    def _fold(self) -> None:
        events, self._new = self._new, []
        for event in joined(events):
            self._reply.add(event)
            match event:
                case Head(n=n):
                    # one choice's ids are made of the answer's, those of further ones must not be the same
                    names = [self._reply_id, *(f"{self._reply_id}c{index}" for index in range(1, n))]
                    self._outputs = [Output(name, logprobs=self._logprobs) for name in names]
                case Finish():
                    pass
                case _:
                    self._outputs[event.index].add(event)


def joined(events: Iterable[Event]) -> Iterator[Event]:
    """What follows each other without a break is one event."""
    for (kind, *_), same in groupby(events, _kind):
        run = list(same)
        if len(run) > 1 and issubclass(kind, Words):
            yield _one(run)  # type: ignore[arg-type]  # they are of that kind
        else:
            yield from run


def _kind(event: Event) -> tuple[type[Event], int | None, int | None]:
    return type(event), getattr(event, "index", None), getattr(event, "call", None)


def _one(run: Sequence[Words]) -> Words:
    return replace(
        run[0],
        text="".join([each.text for each in run]),
        token_ids=tuple(chain.from_iterable(each.token_ids for each in run)),
        logprobs=tuple(chain.from_iterable(each.logprobs for each in run)),
    )
