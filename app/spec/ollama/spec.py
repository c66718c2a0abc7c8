"""Ollama's API as a spec. Its models are the operator's: they are listed and asked; administrators pull and delete."""

import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ClassVar

from fastapi import Depends
from pydantic import BaseModel

from app.common.auth import require_admin
from app.spec import (
    ChatCompletionRequest,
    CompletionRequest,
    Framing,
    NamedEvent,
    Output,
    Payload,
    PayloadStream,
    Problem,
    Request,
    Response,
    Server,
    Spec,
    UnsupportedParameter,
    json_lines,
)
from app.spec.ollama import infill
from app.spec.ollama import request as requests
from app.spec.ollama.answer import AnswerEncoder, PartialAnswer
from app.spec.ollama.catalogue import Catalogue
from app.spec.ollama.embeddings import Embedder
from app.spec.ollama.pulls import Pulls
from schemas.ollama_answer_schema import (
    NANOSECONDS,
    AnswerMetrics,
    ChatLine,
    GenerateLine,
    OllamaEmbedding,
    OllamaEmbeddings,
    Processes,
    PullLine,
    ShownModel,
    Tags,
    Version,
)
from schemas.ollama_schema import ChatRequest, GenerateRequest, OllamaGenerationRequest
from services.parameter_names import ParameterNames

ToLine = Callable[[PartialAnswer, str], ChatLine | GenerateLine]
ADMIN = [Depends(require_admin)]
NOT_SERVED = {
    "/api/push": "POST",
    "/api/create": "POST",
    "/api/copy": "POST",
}


class OllamaSpec(Spec[OllamaGenerationRequest]):
    any_content_type = True
    names: ClassVar[ParameterNames] = requests.NAMES
    too_long = requests.TOO_LONG

    def setup(self, server: Server) -> None:
        super().setup(server)
        self._add("/api/chat", self.chat, ChatLine)
        self._add("/api/generate", self.generate, GenerateLine)
        embedder, catalogue = Embedder(server), Catalogue(server)
        self._add("/api/embed", embedder.embed, OllamaEmbeddings)
        self._add("/api/embeddings", embedder.embed_one, OllamaEmbedding)
        self._add("/api/show", catalogue.show, ShownModel)
        self._add("/api/tags", catalogue.tags, Tags, "GET")
        self._add("/api/ps", catalogue.processes, Processes, "GET")
        self._add("/api/version", catalogue.version, Version, "GET")
        pulls = Pulls(server, self.framing())
        self._add("/api/pull", pulls.pull, PullLine, dependencies=ADMIN)
        self.add_endpoint("/api/delete", pulls.delete, ["DELETE"], tags=["ollama"], dependencies=ADMIN)
        for path, method in NOT_SERVED.items():
            self.add_endpoint(path, self.refuse, [method], include_in_schema=False)

    def _add(
        self, path: str, endpoint: Callable[..., Any], answer: type[BaseModel], method: str = "POST", **options: Any
    ) -> None:
        self.add_endpoint(path, endpoint, [method], response_model=answer, tags=["ollama"], **options)

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        return await (self.answer(body, request) if body.messages else self._load(body))

    async def generate(self, body: GenerateRequest, request: Request) -> Response:
        return await (self.answer(body, request) if body.prompt else self._load(body))

    async def refuse(self, request: Request) -> None:
        raise UnsupportedParameter(request.url.path, "is not served: models are configured by the operator")

    async def _load(self, body: OllamaGenerationRequest) -> Response:
        """What clients ask for by saying nothing."""
        ignored = self.server.ignored(self.ignored(body))
        began = time.perf_counter()
        await self.server.load(requests.model(body.model))
        seconds = time.perf_counter() - began
        loaded = PartialAnswer(metrics=AnswerMetrics(done_reason="load", total_duration=round(seconds * NANOSECONDS)))
        return self.respond(_line(body)(loaded, _name(body)), ignored.headers)

    def names_of(self, request: OllamaGenerationRequest) -> ParameterNames:
        return requests.names(request)

    def decode_request(self, request: OllamaGenerationRequest) -> ChatCompletionRequest | CompletionRequest:
        if isinstance(request, GenerateRequest) and request.suffix:
            return infill.completion(request)
        return requests.chat(request)

    def encode_response(self, output: Output[OllamaGenerationRequest]) -> PayloadStream | Awaitable[Payload]:
        return _lines(output) if output.request.stream else _one(output)

    def error_body(self, problem: Problem) -> dict[str, Any]:
        return {"error": problem.message}

    def framing(self) -> Framing[Payload | NamedEvent]:
        return json_lines(self.error_body)

    def ignored(self, request: OllamaGenerationRequest) -> Iterable[str]:
        return requests.ignored(request)


def _line(request: OllamaGenerationRequest) -> ToLine:
    return PartialAnswer.chat_line if isinstance(request, ChatRequest) else PartialAnswer.generate_line


def _name(request: OllamaGenerationRequest) -> str:
    return request.model or "default"


async def _lines(output: Output[OllamaGenerationRequest]) -> PayloadStream:
    encoder, to_line, model = AnswerEncoder(), _line(output.request), _name(output.request)
    async for event in output:
        for part in encoder.parts(event):
            yield to_line(part, model)


async def _one(output: Output[OllamaGenerationRequest]) -> Payload:
    encoder, answer = AnswerEncoder(), PartialAnswer()
    async for event in output:
        for part in encoder.parts(event):
            answer += part
    return _line(output.request)(answer, _name(output.request))
