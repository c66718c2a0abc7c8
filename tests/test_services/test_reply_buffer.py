import random

from hypothesis import given
from hypothesis import strategies as st

from services.chat.answer.output import OutputItems
from services.chat.answer.output import status as item_status
from services.chat.events import Arguments, Event, Finish, Head, OutputEvent, Reasoning, Reply, Text, ToolCall
from services.engine.base import TokenLogprob
from services.history.reply_buffer import ReplyBuffer, merge_runs

TOKEN = TokenLogprob("a", b"a", -0.5)
HEAD = Head("chatcmpl-1", 1, "a-model", "fp_1", None, n=2)


def words(index: int) -> st.SearchStrategy[OutputEvent]:
    tokens = {"token_ids": st.tuples(st.integers(0, 9)), "logprobs": st.sampled_from([(), (TOKEN,)])}
    kinds = [
        st.builds(kind, st.sampled_from(["", "a", "bc"]), index=st.just(index), **tokens) for kind in (Text, Reasoning)
    ]
    return st.one_of(*kinds)


def call(index: int, number: int) -> list[OutputEvent]:
    return [
        ToolCall(f"call_{number}", "wave", number, index=index),
        *(Arguments(text, number, index=index) for text in ("{", "}")),
    ]


@st.composite
def event_sequences(draw: st.DrawFn) -> list[Event]:
    """Two choices, whose events come mixed, each in its order."""
    choices: list[list[Event]] = []
    for index in range(2):
        choice_events: list[Event] = [*draw(st.lists(words(index), max_size=12))]
        for number in range(draw(st.integers(0, 2))):
            choice_events += call(index, number)
        choices.append([*choice_events, Finish("stop", 3, 2, index=index)])
    order = [0] * len(choices[0]) + [1] * len(choices[1])
    draw(st.randoms(use_true_random=False)).shuffle(order)
    return [choices[index].pop(0) for index in order]


@given(event_sequences(), st.booleans(), st.randoms(use_true_random=False))
def test_what_is_folded_late_is_what_is_folded_event_by_event(
    events: list[Event], logprobs: bool, rng: random.Random
) -> None:
    reply, outputs = Reply(), [OutputItems(name, logprobs=logprobs) for name in ("1", "1c1")]
    late = ReplyBuffer("1", logprobs=logprobs)
    for event in (HEAD, *events):
        reply.add(event)
        late.add(event)
        if not isinstance(event, Head | Finish):
            outputs[event.index].add(event)
        if rng.random() < 0.1:
            assert late.output == [output.items for output in outputs]
    assert late.reply == reply
    assert late.finish() == [
        output.end(item_status(each.finish)) for output, each in zip(outputs, reply.choices, strict=True)
    ]


def test_what_follows_each_other_is_one_event() -> None:
    events = [Text("a", (1,)), Text("b", (2,), (TOKEN,)), Reasoning("c"), Text("d", index=1), Text("e", index=1)]
    assert list(merge_runs(events)) == [Text("ab", (1, 2), (TOKEN,)), Reasoning("c"), Text("de", index=1)]


def test_nothing_is_there_before_the_head() -> None:
    assert (ReplyBuffer("1", logprobs=False).output, ReplyBuffer("1", logprobs=False).reply.head) == ([], None)
