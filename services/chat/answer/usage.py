"""Token usage as the client reads it: so far, or in all."""

from collections import Counter

from schemas.chat_answer_schema import CompletionTokensDetails, CompletionUsage, PromptTokensDetails
from services.chat.events import Finish, Head, OutputEvent, Reasoning, Reply


class UsageCounter:
    """A prompt of several choices is counted once, and so is what of it the first of them found in the cache."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._completion_tokens = Counter[int]()  # by choice; once it is finished, as the finish says
        self._reasoning_tokens = Counter[int]()
        self._cached_tokens = 0
        self._finished = 0

    @property
    def is_whole(self) -> bool:
        return self._finished == self._head.n

    def add(self, event: OutputEvent | Finish) -> None:
        match event:
            case Finish(index=index):
                self._finished += 1
                self._completion_tokens[index] = event.completion_tokens
                self._reasoning_tokens[index] = event.reasoning_tokens
                if index % self._head.shares == 0:
                    self._cached_tokens += event.cached_tokens
                return
            case Reasoning(index=index):
                self._reasoning_tokens[index] += len(event.token_ids)
        self._completion_tokens[event.index] += len(event.token_ids)

    def usage(self) -> CompletionUsage:
        head, completion_tokens = self._head, self._completion_tokens.total()
        return CompletionUsage(
            prompt_tokens=head.prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=head.prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=self._cached_tokens, truncated_tokens=head.truncated
            ),
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=self._reasoning_tokens.total()),
        )


def usage_of(reply: Reply) -> CompletionUsage:
    assert reply.head
    counter = UsageCounter(reply.head)
    for choice in reply.choices:
        if choice.finish:
            counter.add(choice.finish)
    return counter.usage()
