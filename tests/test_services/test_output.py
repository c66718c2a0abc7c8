from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseReasoningItem

from services.chat.answer import output
from services.chat.events import Arguments, Finish, Reasoning, Text, ToolCall
from services.engine.base import TokenLogprob


def test_events_fold_into_the_items_that_the_official_client_knows() -> None:
    folded = output.OutputItems("0" * 32)
    for event in [Reasoning("H"), Reasoning("m"), Text("Let "), Text("me"), ToolCall("c1", "f", 0), Arguments("{", 0)]:
        folded.add(event)
    folded.add(Arguments("}", 0))
    reasoning, text, call = folded.end("completed")
    assert ResponseReasoningItem(**reasoning).content[0].text == "Hm"  # type: ignore[index]
    assert ResponseOutputMessage(**text).content[0].text == "Let me"  # type: ignore[union-attr]
    assert ResponseFunctionToolCall(**call).arguments == "{}"
    assert [item["id"] for item in (reasoning, text, call)] == [f"{kind}_{'0' * 32}" for kind in ("rs", "msg", "fc")]


def test_an_answer_that_was_cut_is_incomplete_in_its_last_item() -> None:
    folded = output.OutputItems("r")
    for event in [Reasoning("Hm"), Text("Let me"), ToolCall("c1", "f", 0), Arguments("{}", 0), ToolCall("c2", "g", 1)]:
        folded.add(event)
    items = folded.end(output.status(Finish("length", 1, 2)))
    assert [item["type"] for item in items] == ["reasoning", "message", "function_call", "function_call"]
    assert [item.get("arguments") for item in items] == [None, None, "{}", ""]
    assert [item["status"] for item in items] == ["completed", "completed", "completed", "incomplete"]


def test_an_answer_without_a_word_is_an_empty_message() -> None:
    assert [item["content"][0]["text"] for item in output.OutputItems("r").end("completed")] == [""]
    assert output.OutputItems("r").end("incomplete") == []


def test_each_item_of_an_answer_has_its_own_id() -> None:
    folded = output.OutputItems("r")
    for event in [Text("a"), ToolCall("c1", "f", 0), Text("b"), ToolCall("c2", "f", 1)]:
        folded.add(event)
    assert [item["id"] for item in folded.end("completed")] == ["msg_r", "fc_r", "msg_r_1", "fc_r_1"]


def test_logprobs_are_kept_where_they_are_wanted() -> None:
    token = TokenLogprob("a", b"a", float("-inf"), (TokenLogprob("b", b"b", -1.0),))
    with_logprobs, unwanted = output.OutputItems("r", logprobs=True), output.OutputItems("r")
    for folded in (with_logprobs, unwanted):
        folded.add(Text("a", logprobs=(token,)))
    logprob = {"token": "a", "logprob": -9999.0, "bytes": [97]}
    top = {"token": "b", "logprob": -1.0, "bytes": [98]}
    assert with_logprobs.items[0]["content"][0]["logprobs"] == [logprob | {"top_logprobs": [top]}]
    assert unwanted.items[0]["content"][0]["logprobs"] == []
