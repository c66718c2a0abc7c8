"""A stored response as it is shown."""

from schemas.chat_schema import ConversationRef
from schemas.response_schema import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    Response,
    ResponseError,
    ResponseUsage,
)
from services.chat.response_events import INTERRUPTED
from services.history.answer import Answer


def response_of(answer: Answer) -> Response:
    response = Response.model_validate(
        {
            **answer.request,
            "id": answer.id,
            "created_at": int(answer.created_at),
            "model": answer.model,
            "status": answer.status,
            "conversation": reference(answer.conversation_id),
            "previous_response_id": answer.previous_id,
            "metadata": answer.metadata,
            "output": list(answer.output[0]) if answer.output else [],
        }
    )
    if answer.usage:
        response.usage = _usage(answer.usage)
    if answer.status == "completed" and answer.choices[0]["finish_reason"] == "length":
        response.status = "incomplete"
        response.incomplete_details = IncompleteDetails(reason="max_output_tokens")
    elif answer.status == "incomplete":
        response.incomplete_details = IncompleteDetails(reason=INTERRUPTED)
    elif answer.status == "failed" and answer.error:
        response.error = ResponseError.model_validate(answer.error)
    if response.status == "completed" and answer.completed_at is not None:
        response.completed_at = int(answer.completed_at)
    return response


def _usage(used: dict[str, int]) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=used["prompt_tokens"],
        input_tokens_details=InputTokensDetails(cached_tokens=used["cached_tokens"]),
        output_tokens=used["completion_tokens"],
        output_tokens_details=OutputTokensDetails(reasoning_tokens=used["reasoning_tokens"]),
        total_tokens=used["prompt_tokens"] + used["completion_tokens"],
    )


def reference(conversation_id: str | None) -> ConversationRef | None:
    return ConversationRef(id=conversation_id) if conversation_id else None
