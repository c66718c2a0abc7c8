from services.chat.events import Arguments, Event, Finish, Head, Reasoning, Reply, Text, ToolCall
from services.engine.base import TokenLogprob
from services.history import replay
from services.turn_service import TurnService
from tests.test_services.test_turn_service import begin, finish

TOKEN = TokenLogprob("Hi", b"Hi", -0.5, (TokenLogprob("Ho", b"Ho", -1.5),))
SAID: list[Event] = [
    Reasoning("Hm", index=0),
    Text("Hi", logprobs=(TOKEN,), index=0),
    ToolCall("call_1", "weather", 0, index=0),
    Arguments('{"at": ', 0, index=0),
    Arguments('"sea"}', 0, index=0),
    ToolCall("call_2", "time", 1, index=0),
    Arguments("{}", 1, index=0),
    ToolCall("call_3", "patch", 2, index=0, kind="custom", namespace="files"),
    Arguments("*** Begin", 2, index=0, kind="custom"),
    ToolCall("call_4", "tool_search", 3, index=0, kind="tool_search"),
    Arguments('{"query": "q"}', 3, index=0, kind="tool_search"),
    Text("Ho", index=1),
    Finish("length", 7, 2, index=1),
    Finish("tool_calls", 7, 9, cached_tokens=3, reasoning_tokens=4, index=0),
]


async def test_a_stored_answer_is_replayed_unchanged(turns: TurnService) -> None:
    turn = await begin(turns, "Hi", kind="chat.completion", create=False, stored=True, n=2)
    await finish(turn, *SAID)
    stored = await turns.answer(turn.id, "me", "chat.completion")
    expected = Reply()
    for event in [Head(turn.id, int(turn.created_at), "a-model", "fp_1", None, prompt_tokens=7, n=2), *SAID]:
        expected.add(event)
    replayed = replay.reply_of(stored)
    assert replayed.head == expected.head
    for one, other in zip(replayed.choices, expected.choices, strict=True):
        assert (one.text, one.reasoning, one.calls, one.logprobs) == (
            other.text,
            other.reasoning,
            other.calls,
            other.logprobs,
        )
    ends = [each.finish for each in replayed.choices if each.finish]
    assert [end.reason for end in ends] == ["tool_calls", "length"]
    assert sum(end.completion_tokens for end in ends) == 11
    assert (ends[0].cached_tokens, ends[0].reasoning_tokens) == (3, 4)
