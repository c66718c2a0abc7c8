"""Events -> OpenAI's chunks, or the one completion they add up to."""

from collections.abc import AsyncGenerator, AsyncIterator

from schemas.chat_schema import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    CompletionUsage,
    ConversationRef,
    Delta,
    FinishReason,
    PromptTokensDetails,
)
from services.chat.events import Event, Finish, Head, Text, head_of


async def chunks(run: AsyncIterator[Event], usage: bool) -> AsyncGenerator[ChatCompletionChunk, None]:
    """The role first, then text, then the finish alone; with `usage`, a null on each and a last chunk that has it."""
    frame = _frame(await head_of(run))
    yield _chunk(frame, Delta(role="assistant", content="", refusal=None), usage=usage)
    async for event in run:
        match event:
            case Text(text):
                yield _chunk(frame, Delta(content=text), usage=usage)
            case Finish(reason):
                yield _chunk(frame, Delta(), reason, usage=usage)
                if usage:
                    yield frame.model_copy(update={"usage": _usage(event)})


def completion(head: Head, text: str, finish: Finish, metadata: dict[str, str | int | float]) -> ChatCompletion:
    return ChatCompletion(
        id=head.id,
        created=head.created,
        model=head.model,
        choices=[Choice(index=0, message=AssistantMessage(content=text), finish_reason=finish.reason)],
        usage=_usage(finish),
        system_fingerprint=head.fingerprint,
        metadata=metadata or None,
        conversation=_conversation(head),
    )


def _frame(head: Head) -> ChatCompletionChunk:
    """A chunk with what all chunks of this answer share, and no choice yet."""
    frame = ChatCompletionChunk(
        id=head.id,
        object="chat.completion.chunk",
        created=head.created,
        model=head.model,
        choices=[],
        system_fingerprint=head.fingerprint,
    )
    if head.conversation_id:
        frame.conversation = _conversation(head)
    return frame


def _chunk(
    frame: ChatCompletionChunk, delta: Delta, reason: FinishReason | None = None, *, usage: bool
) -> ChatCompletionChunk:
    choice = ChunkChoice(index=0, delta=delta, logprobs=None, finish_reason=reason)
    chunk = frame.model_copy(update={"choices": [choice]})
    if usage:
        chunk.usage = None  # set, so that it is sent
    return chunk


def _conversation(head: Head) -> ConversationRef | None:
    return ConversationRef(id=head.conversation_id) if head.conversation_id else None


def _usage(finish: Finish) -> CompletionUsage:
    total = finish.prompt_tokens + finish.completion_tokens
    return CompletionUsage(
        prompt_tokens=finish.prompt_tokens,
        completion_tokens=finish.completion_tokens,
        total_tokens=total,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=finish.cached_tokens),
    )
