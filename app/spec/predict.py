"""POST /predict: `{"input": "…"}` in, `{"output": "…"}` out."""

from collections.abc import Awaitable
from typing import Any, ClassVar

from fastapi import Request, Response

from app.common.sse import Framing
from app.spec.framing import NamedEvent, Payload, json_lines
from app.spec.server import Output
from app.spec.spec import PayloadStream, Spec
from schemas.chat_schema import ChatCompletionRequest
from schemas.predict_schema import Predicted, Prediction
from services.chat.events import Text
from services.parameter_names import ParameterNames

LINES: dict[int | str, dict[str, Any]] = {200: {"content": {"application/x-ndjson": {}}}}


class PredictSpec(Spec[Prediction]):
    any_content_type = True
    names: ClassVar[ParameterNames] = {"messages": "input."}

    def __init__(self, path: str = "/predict") -> None:
        super().__init__()
        self.add_endpoint(path, self.predict, ["POST"], response_model=Predicted, responses=LINES, tags=["predict"])

    async def predict(self, body: Prediction, request: Request) -> Response:
        return await self.answer(body, request)

    def decode_request(self, request: Prediction) -> ChatCompletionRequest:
        fields = request.model_dump(exclude_unset=True, exclude={"input", "prompt", *(request.model_extra or ())})
        message = {"role": "user", "content": request.input or request.prompt}
        return ChatCompletionRequest.model_validate({"messages": [message], **fields})

    def encode_response(self, output: Output[Prediction]) -> PayloadStream | Awaitable[Payload]:
        return _pieces(output) if output.request.stream else _whole(output)

    def framing(self) -> Framing[Payload | NamedEvent]:
        return json_lines(self.error_body)


async def _pieces(output: Output[Prediction]) -> PayloadStream:
    async for event in output:
        if isinstance(event, Text) and event.text:
            yield Predicted(output=event.text)


async def _whole(output: Output[Prediction]) -> Payload:
    return Predicted(output=(await output.whole()).text)
