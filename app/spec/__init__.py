"""All that a spec imports: endpoints of your own, in a wire format of your own, on Parley's engine.

    class Shout(Spec[Question]):                          # Question: a pydantic model, the body
        def __init__(self) -> None:
            super().__init__()
            self.add_endpoint("/shout", self.shout, ["POST"])

        async def shout(self, body: Question, request: Request) -> Response:
            return await self.answer(body, request)

        def decode_request(self, request: Question) -> ChatCompletionRequest:
            return ChatCompletionRequest.model_validate({"messages": [{"content": request.text}]})

        async def encode_response(self, output: Output[Question]) -> dict[str, Any]:
            return {"shouted": (await output.whole()).text.upper()}

`PARLEY_SPECS='["my_package.my_spec:Shout"]'` serves it. `examples/shout_spec.py` also streams.
"""

from fastapi import Request, Response

from app.common.disconnect import while_connected
from app.common.errors import Problem
from app.common.sse import Framing
from app.spec.arguments import as_object
from app.spec.framing import NamedEvent, Payload, json_lines, server_sent
from app.spec.server import Output, Server
from app.spec.spec import Endpoint, PayloadStream, Spec, decoded
from schemas.chat_schema import ChatCompletionRequest
from schemas.completion_schema import CompletionRequest
from schemas.embeddings_schema import EmbeddingRequest
from services.chat.answer.logprobs import tokens as token_logprobs
from services.chat.events import (
    Arguments,
    ChoiceReply,
    Event,
    Finish,
    Head,
    Reasoning,
    Reply,
    ReplyToolCall,
    Text,
    ToolCall,
)
from services.chat.request.refusals import refuse, unknown_keys
from services.chat.sealed import Seal
from services.engine.base import TokenLogprob
from services.errors import InvalidRequest, NotFound, ServiceError, UnsupportedParameter
from services.models.config import ModelCard

__all__ = [
    "Arguments",
    "ChatCompletionRequest",
    "ChoiceReply",
    "CompletionRequest",
    "EmbeddingRequest",
    "Endpoint",
    "Event",
    "Finish",
    "Framing",
    "Head",
    "InvalidRequest",
    "ModelCard",
    "NamedEvent",
    "NotFound",
    "Output",
    "Payload",
    "PayloadStream",
    "Problem",
    "Reasoning",
    "Reply",
    "ReplyToolCall",
    "Request",
    "Response",
    "Seal",
    "Server",
    "ServiceError",
    "Spec",
    "Text",
    "TokenLogprob",
    "ToolCall",
    "UnsupportedParameter",
    "as_object",
    "decoded",
    "json_lines",
    "refuse",
    "server_sent",
    "token_logprobs",
    "unknown_keys",
    "while_connected",
]
