"""What is kept of a chat completion, and how it is shown when it is found again."""

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.chat_schema import ChatCompletionRequest
from schemas.generation_schema import Metadata
from schemas.stored_schema import StoredChatCompletion, StoredChatMessage
from services.chat import items
from services.chat.answer import encode
from services.chat.answer.encode import ChunkOptions
from services.chat.events import Reply
from services.chat.items import Item
from services.chat.request import contents, prompt

KEPT = {
    *("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed"),
    *("tools", "tool_choice", "response_format", "logprobs"),
}


def request_facts(request: ChatCompletionRequest) -> dict[str, Any]:
    """What is kept of a request besides its messages."""
    kept = request.model_dump(mode="json", include=KEPT, exclude_defaults=True)
    tier = prompt.served_tier(request.service_tier)
    return kept | ({"service_tier": tier} if tier else {})


def completion(reply: Reply, facts: Mapping[str, Any], metadata: Metadata, status: str) -> StoredChatCompletion:
    plain = encode.completion(reply, metadata, ChunkOptions(logprobs=bool(facts.get("logprobs"))))
    shown = {name: value for name, value in facts.items() if name != "logprobs"}
    how = {"metadata": metadata, "status": None if status == "completed" else status}
    return StoredChatCompletion.model_validate(plain.model_dump() | shown | how)


def messages(completion_id: str, input_items: Sequence[Item]) -> list[StoredChatMessage]:
    """Their ids say which place they had."""
    return [
        StoredChatMessage(
            id=f"{completion_id}-{index}",
            role=message.role,
            content=contents.text(message.content) if message.content is not None else None,
            content_parts=message.content if isinstance(message.content, list) else None,
            refusal=message.refusal,
            name=message.name,
            tool_calls=message.tool_calls or None,
            tool_call_id=message.tool_call_id,
        )
        for index, message in enumerate(items.to_messages(input_items))
    ]
