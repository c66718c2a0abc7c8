"""A spec: POST /shout answers in capitals, whole or line by line.

PARLEY_SPECS='["examples.shout_spec:Shout"]' parley serve
curl http://127.0.0.1:8000/shout -H 'Content-Type: application/json' -d '{"text": "Hello", "stream": true}'
"""

from collections.abc import Awaitable

from pydantic import BaseModel

from app.spec import ChatCompletionRequest, Output, Payload, PayloadStream, Request, Response, Spec, Text


class Question(BaseModel):
    text: str
    stream: bool = False


class Shout(Spec[Question]):
    def __init__(self) -> None:
        super().__init__()
        self.add_endpoint("/shout", self.shout, ["POST"])

    async def shout(self, body: Question, request: Request) -> Response:
        return await self.answer(body, request)

    def decode_request(self, request: Question) -> ChatCompletionRequest:
        return ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": request.text}]})

    def encode_response(self, output: Output[Question]) -> PayloadStream | Awaitable[Payload]:
        return self.pieces(output) if output.request.stream else self.whole(output)

    async def pieces(self, output: Output[Question]) -> PayloadStream:
        async for event in output:
            if isinstance(event, Text):
                yield {"shouted": event.text.upper()}

    async def whole(self, output: Output[Question]) -> Payload:
        reply = await output.whole()
        return {"shouted": reply.text.upper()}
