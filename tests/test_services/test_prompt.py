"""Requests to jobs, without an engine."""

import inspect
from typing import ClassVar

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from schemas.chat_schema import ChatCompletionRequest
from services.chat.request import completion, prompt
from services.chat.request.refusals import REASONS
from services.engine.base import Message, SamplingParams
from services.errors import InvalidRequest, UnsupportedParameter
from tests.fakes import TEMPLATE, FakeTokenizer

HI = {"messages": [{"role": "user", "content": "hi"}]}
SERVED = sorted(ChatCompletionRequest.model_fields)
REFUSED = [
    ("audio", {"voice": "alloy", "format": "wav"}),
    ("function_call", "auto"),
    ("functions", [{"name": "f"}]),
    ("modalities", ["text", "audio"]),
    *((name, "anything else") for name in prompt.UNSUPPORTED),
]
NEUTRAL = [(name, value) for name, values in prompt.UNSUPPORTED.items() for value in values]


def request(**fields: object) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({**HI, **fields})


def prompt_messages(
    *messages: dict[str, object], system: str | None = None, history: tuple[Message, ...] = ()
) -> list[Message]:
    return prompt.messages(request(messages=[*messages]), history, system)


def test_what_a_tokenizer_takes_for_itself_never_comes_from_a_request() -> None:
    taken = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    assert set(taken) - {"kwargs"} <= prompt.RESERVED


class TestParameters:
    def test_each_of_the_contract_is_served_or_refused_by_name(self) -> None:
        contract = set(CompletionCreateParamsStreaming.__annotations__)
        for base in CompletionCreateParamsStreaming.__orig_bases__:
            contract |= set(getattr(base, "__annotations__", {}))
        assert len(contract) > 30
        assert contract - set(SERVED) - set(prompt.UNSUPPORTED) - set(ChatCompletionRequest.HINTS) == set()

    def test_none_is_both_served_and_refused(self) -> None:
        assert set(SERVED) & set(prompt.UNSUPPORTED) == set()

    @pytest.mark.parametrize(("name", "value"), REFUSED)
    def test_unsupported_one_is_refused_by_name(self, name: str, value: object) -> None:
        with pytest.raises(UnsupportedParameter) as refused:
            prompt.check(request(**{name: value}))
        assert refused.value.param == name
        assert name in refused.value.message

    @pytest.mark.parametrize(("name", "value"), NEUTRAL)
    def test_unsupported_parameter_with_a_neutral_value_is_accepted(self, name: str, value: object) -> None:
        prompt.check(request(**{name: value}))

    @pytest.mark.parametrize("name", [*SERVED, *prompt.UNSUPPORTED])
    def test_null_is_as_good_as_absent(self, name: str) -> None:
        if name == "messages":
            with pytest.raises(ValidationError, match="Field required"):
                request(messages=None)
        else:
            assert request(**{name: None}) == request()
            prompt.check(request(**{name: None}))

    def test_nulls_inside_are_as_good_as_absent_too(self) -> None:
        nulls = {"role": None, "name": None, "refusal": None, "tool_calls": None, "audio": None}
        full = request(messages=[{"content": "hi", **nulls}], stream=True, stream_options={"include_usage": None})
        assert full == request(messages=[{"content": "hi"}], stream=True, stream_options={})

    def test_unknown_parameters_differ_from_unsupported_ones(self) -> None:
        assert prompt.unknown_keys(request(zebra=1, apple=2, tools=[], n=1)) == ["apple", "zebra"]
        assert prompt.unknown_keys(request(temperature=0, zebra=None)) == []

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"top_logprobs": 3}, "top_logprobs"),
            ({"n": 2, "conversation": "conv_1"}, "n"),
            ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
            ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools"),
        ],
    )
    def test_some_go_together_or_not_at_all(self, fields: dict[str, object], param: str) -> None:
        with pytest.raises(InvalidRequest) as refused:
            prompt.check(request(**fields))
        assert refused.value.param == param

    def test_stream_options_go_with_streams_only(self) -> None:
        with pytest.raises(InvalidRequest) as refused:
            prompt.check(request(stream_options={"include_usage": True}))
        assert refused.value.param == "stream_options"
        prompt.check(request(stream_options={"include_usage": True}, stream=True))

    def test_every_reason_is_of_something_refused(self) -> None:
        assert set(REASONS) - set(prompt.UNSUPPORTED) - set(completion.UNSUPPORTED) == set()

    @pytest.mark.parametrize(
        ("fields", "priority", "served"),
        [
            ({}, 0, None),
            ({"service_tier": "auto"}, 0, "default"),
            ({"service_tier": "default", "priority": 5}, 5, "default"),
            ({"service_tier": "flex"}, 1, "flex"),
            ({"service_tier": "priority", "priority": 5}, 4, "priority"),
            ({"service_tier": "fast"}, -1, "priority"),
        ],
    )
    def test_a_tier_is_a_priority(self, fields: dict[str, object], priority: int, served: str | None) -> None:
        assert (prompt.priority(chat_request := request(**fields)), prompt.served_tier(chat_request.service_tier)) == (
            priority,
            served,
        )


def sampling(chat_request: ChatCompletionRequest, max_tokens: int | None) -> SamplingParams:
    return prompt.sampling(chat_request, prompt.max_tokens(chat_request, max_tokens), stop=tuple(chat_request.stop))


class TestSampling:
    def test_defaults_are_openais(self) -> None:
        assert sampling(request(), None) == SamplingParams(temperature=1.0, top_p=1.0)

    def test_all_are_taken_over(self) -> None:
        chat_request = request(max_tokens=7, temperature=0, top_p=0.5, top_k=3, seed=-1, stop=["a", "b"])
        assert sampling(chat_request, 99) == SamplingParams(7, 0, 0.5, 3, -1, ("a", "b"))

    def test_so_are_those_that_change_the_logits(self) -> None:
        fields = {"min_p": 0.1, "repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": -0.4}
        chat_request = request(**fields, logit_bias={"7": -100, "8": 1.5})
        assert sampling(chat_request, None) == SamplingParams(**fields, logit_bias={7: -100, 8: 1.5})

    def test_stop_sequences_are_passed_on(self) -> None:
        chat_request = request(min_tokens=3, ignore_eos=True, stop_token_ids=[5], include_stop_str_in_output=True)
        expected = SamplingParams(min_tokens=3, ignore_eos=True, stop_token_ids=(5,), include_stop=True)
        assert sampling(chat_request, None) == expected

    def test_min_tokens_may_be_a_number_in_the_metadata(self) -> None:
        assert sampling(request(metadata={"min_tokens": 20}), None).min_tokens == 20
        assert sampling(request(metadata={"min_tokens": 20}, min_tokens=0), None).min_tokens == 0
        assert sampling(request(metadata={"min_tokens": "20"}), None).min_tokens == 0  # as OpenAI's: a note

    def test_logprobs_have_the_requested_alternatives(self) -> None:
        assert sampling(request(), None).logprobs is None
        assert sampling(request(logprobs=True), None).logprobs == 0
        assert sampling(request(logprobs=True, top_logprobs=4), None).logprobs == 4

    def test_one_stop_string_is_a_list_of_one(self) -> None:
        assert sampling(request(stop="end"), None).stop == ("end",)

    @pytest.mark.parametrize("off", [0, -1])
    def test_top_k_can_be_off(self, off: int) -> None:
        assert sampling(request(top_k=off), None).top_k is None

    def test_the_newer_limit_wins_and_the_servers_own_comes_last(self) -> None:
        assert sampling(request(max_tokens=7, max_completion_tokens=8), 9).max_tokens == 8
        assert sampling(request(max_tokens=7), 9).max_tokens == 7
        assert sampling(request(), 9).max_tokens == 9


class TestMessages:
    def test_without_a_role_it_is_the_users(self) -> None:
        assert prompt_messages({"content": "hi"}) == [{"role": "user", "content": "hi"}]

    def test_developer_speaks_as_system(self) -> None:
        assert prompt_messages({"role": "developer", "content": "be brief"}) == [
            {"role": "system", "content": "be brief"}
        ]

    def test_text_parts_are_joined(self) -> None:
        parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
        assert prompt_messages({"content": parts}) == [{"role": "user", "content": "one two"}]

    def test_refusals_are_assistant_text(self) -> None:
        parts = [{"type": "refusal", "refusal": "I will not"}]
        assert prompt_messages(
            {"role": "assistant", "content": parts}, {"role": "assistant", "refusal": "nor this"}
        ) == [
            {"role": "assistant", "content": "I will not"},
            {"role": "assistant", "content": "nor this"},
        ]

    def test_history_comes_first(self) -> None:
        history: tuple[Message, ...] = ({"role": "user", "content": "before"},)
        assert [each["content"] for each in prompt_messages({"content": "now"}, history=history)] == ["before", "now"]

    def test_system_prompt_goes_in_front_where_there_is_none(self) -> None:
        assert prompt_messages({"content": "hi"}, system="be brief")[0] == {"role": "system", "content": "be brief"}

    @pytest.mark.parametrize("role", ["system", "developer"])
    def test_system_prompt_gives_way_to_the_requests_own(self, role: str) -> None:
        prompt_list = prompt_messages({"role": role, "content": "be long"}, {"content": "hi"}, system="be brief")
        assert [each["content"] for each in prompt_list] == ["be long", "hi"]

    def test_system_prompt_gives_way_to_the_historys_own(self) -> None:
        history: tuple[Message, ...] = ({"role": "system", "content": "be long"},)
        assert [each["content"] for each in prompt_messages({"content": "hi"}, history=history, system="be brief")] == [
            "be long",
            "hi",
        ]

    def test_results_of_no_call_are_named_where_they_stand(self) -> None:
        result = {"role": "tool", "tool_call_id": "x", "content": "1"}
        with pytest.raises(InvalidRequest) as refused:
            prompt_messages(result, history=({"role": "user", "content": "hi"},))
        assert refused.value.param == "messages.0.tool_call_id"
        with pytest.raises(InvalidRequest) as refused:
            prompt_messages({"content": "hi"}, history=(result,))
        assert refused.value.param == "conversation"

    def test_cache_breakpoints_are_not_needed(self) -> None:
        part = {"type": "text", "text": "hi", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "30m"}}
        assert prompt_messages({"content": [part]})[0]["content"] == "hi"

    @pytest.mark.parametrize(
        ("message", "where"),
        [
            ({"role": "robot", "content": "hi"}, ("messages", 0, "role")),
            ({"role": "user"}, ("messages", 0, "content")),
            ({"role": "user", "content": 5}, ("messages", 0, "content")),
            (
                {"content": [{"type": "image_url", "image_url": {"detail": "low"}}]},
                ("messages", 0, "content", 0, "image_url", "url"),
            ),
            ({"content": [{"type": "text"}]}, ("messages", 0, "content", 0, "text")),
            ({"content": ["hi"]}, ("messages", 0, "content", 0)),
            ({"role": "tool", "content": "hi"}, ("messages", 0, "tool_call_id")),
            ({"content": "hi", "name": "n" * 65}, ("messages", 0, "name")),
            ("hi", ("messages", 0)),
        ],
    )
    def test_others_are_refused_where_they_are_wrong(self, message: object, where: tuple[object, ...]) -> None:
        with pytest.raises(ValidationError) as refused:
            request(messages=[message])
        (error,) = refused.value.errors()
        assert error["loc"] == where


class TestRender:
    def render(self, *messages: Message, template: str | None, **fields: object) -> str:
        options = prompt.template(request(**fields))
        return prompt.render(list(messages), FakeTokenizer(template), options)

    ANSWERED: ClassVar[list[Message]] = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hel"}]

    def test_final_message_can_be_continued(self) -> None:
        continued = self.render(*self.ANSWERED, template=TEMPLATE, continue_final_message=True)
        assert continued == "<user>hi\n<assistant>Hel"

    def test_answer_need_not_be_opened(self) -> None:
        assert self.render(*self.ANSWERED[:1], template=TEMPLATE, add_generation_prompt=False) == "<user>hi\n"
        script = self.render(*self.ANSWERED, template=None, continue_final_message=True)
        assert script == "User: hi\nAssistant: Hel"

    def test_template_has_arguments(self) -> None:
        template = "{{ messages[0].content }} {{ tone }}"
        assert self.render(*self.ANSWERED, template=template, chat_template_kwargs={"tone": "dry"}) == "hi dry"

    def test_arguments_that_break_the_template_are_refused(self) -> None:
        with pytest.raises(InvalidRequest):
            self.render(*self.ANSWERED, template="{{ 1 + tone }}", chat_template_kwargs={"tone": "dry"})

    def test_template_is_followed_and_opens_the_answer(self) -> None:
        chat_request = prompt.messages(
            request(messages=[{"role": "system", "content": "be brief"}, *HI["messages"]]), (), None
        )
        rendered = prompt.encoded(chat_request, FakeTokenizer(), prompt.template(request()))
        assert bytes(rendered.ids).decode() == "<system>be brief\n<user>hi\n<assistant>\n"

    def test_refusal_of_a_template_names_the_messages(self) -> None:
        with pytest.raises(InvalidRequest, match="an answer cannot come first") as refused:
            prompt.render([{"role": "assistant", "content": "hi"}], FakeTokenizer(), prompt.template(request()))
        assert refused.value.param == "messages"

    def test_single_message_goes_plain_to_a_model_that_cannot_chat(self) -> None:
        assert self.render({"role": "user", "content": "Once upon a time"}, template=None) == "Once upon a time"

    def test_several_messages_are_a_script_to_a_model_that_cannot_chat(self) -> None:
        messages: list[Message] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
        assert self.render(*messages, template=None) == "System: be brief\nUser: hi\nAssistant:"
