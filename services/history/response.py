"""A stored turn as a response of the Responses API."""

from collections.abc import Callable

from schemas.response_answer_schema import IncompleteDetails, Response, ResponseError
from services.chat.answer.encode import conversation_ref
from services.chat.answer.reasoning_output import ReasoningOutput
from services.chat.answer.response_events import INTERRUPTED, usage
from services.history.answer import Answer

COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")


def response_of(answer: Answer, seal: Callable[[str], str] | None = None) -> Response:
    """`seal` encrypts reasoning; given if `reasoning.encrypted_content` was requested."""
    thoughts = ReasoningOutput((answer.request.get("reasoning") or {}).get("summary"), seal)
    response = Response.model_validate(
        {
            **answer.request,
            "id": answer.id,
            "created_at": int(answer.created_at),
            "model": answer.model,
            "status": answer.status,
            "conversation": conversation_ref(answer.conversation_id),
            "previous_response_id": answer.previous_id,
            "metadata": answer.metadata,
            "output": [thoughts.shown(item) for item in answer.output[0]] if answer.output else [],
        }
    )
    if answer.usage:
        response.usage = usage(*(answer.usage[name] for name in COUNTS))
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
