"""What the answer to a request for a response is made with: one immutable value."""

from dataclasses import dataclass, field, replace

from schemas.response_answer_schema import Response
from schemas.response_schema import ResponseRequest
from services.chat.answer.encode import conversation_ref
from services.chat.answer.output import OutputItems
from services.chat.answer.reasoning_output import ReasoningOutput
from services.chat.answer.response_events import ResponseEncoder
from services.chat.compaction.window import Chat
from services.chat.events import Head
from services.chat.request import responses
from services.chat.request.preparation_cache import PreparationCache
from services.chat.request.refusals import ReportIgnored
from services.chat.request.sampling import apply_defaults
from services.engine.base import SamplingDefaults
from services.history.progress import Progress
from services.history.replay import Replay
from services.history.turn import Facts, Turn


@dataclass(frozen=True, slots=True)
class ResponseContext:
    request: ResponseRequest
    owner: str
    source: Turn | Replay  # of the answer's events: a turn that is to be answered, or a stored answer
    messages: Chat  # of the history and the input
    model: str  # its name in the response, until the model is loaded
    reasoning: ReasoningOutput
    report_ignored: ReportIgnored
    cache: PreparationCache = field(default_factory=PreparationCache)  # of the chat completion
    progress: Progress | None = None  # of a background response

    def with_defaults(self, defaults: SamplingDefaults) -> "ResponseContext":
        return replace(self, request=apply_defaults(self.request, defaults))

    def response(self, head: Head | None = None) -> Response:
        """Without output. `head`: of the admitted answer."""
        known = {
            "id": self.source.id,
            "created_at": int(self.source.created_at),
            "conversation": conversation_ref(self.source.conversation_id),
            "dropped_messages": head.dropped_messages if head else 0,
        }
        return responses.initial_response(self.request, head.model if head else self.model).model_copy(update=known)

    def encoder(self) -> ResponseEncoder:
        output = OutputItems(self.source.reply_id, logprobs=responses.LOGPROBS in self.request.include)
        return ResponseEncoder(self.response(), output, self.reasoning)

    def facts(self, dropped_messages: int = 0) -> Facts:
        """What is stored of the request with its answer."""
        facts = self.response().model_dump(include=responses.REQUEST_FACTS)
        return facts | ({"dropped_messages": dropped_messages} if dropped_messages else {})
