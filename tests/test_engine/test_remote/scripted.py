"""A server to vLLM's wire around a scripted engine, so that what is shown with that engine is shown of a remote one."""

import asyncio
from collections.abc import Sequence

from services.engine.base import Job, Piece, SamplingParams
from services.errors import Overloaded, ServiceError
from tests.fakes import FakeEngine, FakeTokenizer
from tests.test_engine.test_remote.servers import (
    Request,
    WireServer,
    completions,
    event,
    models,
    watched,
    whole,
    write,
    write_head,
)

BYTES = 256


class PieceTokenizer(FakeTokenizer):
    """Prompts are bytes; of answers, each piece is one token."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[str] = []

    def token(self, piece: str) -> int:
        if piece not in self._pieces:
            self._pieces.append(piece)
        return BYTES + self._pieces.index(piece)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(self._pieces[token - BYTES] if token >= BYTES else chr(token) for token in token_ids)

    def __len__(self) -> int:
        return 2 * BYTES


class ScriptedServer(WireServer):
    def __init__(self, engine: FakeEngine, tokenizer: PieceTokenizer) -> None:
        super().__init__({"/v1/models": models("vllm", max_model_len=4096)})
        self._engine = engine
        self._tokenizer = tokenizer
        engine.start()

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        params = SamplingParams(max_tokens=request.body["max_tokens"], temperature=request.body["temperature"])
        try:
            pieces = await self._engine.submit(Job("job", tuple(request.body["prompt"]), params))
        except Overloaded as error:
            await whole(writer, 429, {}, {"retry-after": f"{error.retry_after:g}"})
            return True
        write_head(writer)
        async with watched(reader, request) as left:
            try:
                while (reading := asyncio.ensure_future(anext(pieces, None))) and not left.done():
                    await asyncio.wait([reading, left], return_when=asyncio.FIRST_COMPLETED)
                    if not reading.done():
                        reading.cancel()
                        return False
                    piece = reading.result()
                    if piece is None:
                        break
                    await write(writer, self._chunk(piece))
            except ServiceError:
                await write(writer, event({"error": {"message": "it failed"}}))
            finally:
                await pieces.aclose()
            await write(writer, b"")
        return True

    def _chunk(self, piece: Piece) -> bytes:
        tokens = [self._tokenizer.token(piece.text)] if piece.text else []
        chunks = completions(tokens, finish=piece.finish or "stop")
        return (
            b"".join(chunks)
            if piece.finish
            else chunks[0].replace(b'"finish_reason": "stop"', b'"finish_reason": null')
        )
