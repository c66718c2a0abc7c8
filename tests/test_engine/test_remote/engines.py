"""Remote engines around servers of a test; tokens are letters."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from services.engine.base import Piece, Tokenizer, UpstreamAddress
from services.engine.remote.engine import RemoteEngine
from services.engine.remote.model_info import ModelInfo
from services.engine.remote.router import Router
from services.engine.remote.upstream import Upstream
from tests.test_engine.fakes import END, LETTERS, Alphabet
from tests.test_engine.test_remote.servers import WireServer

KEY = "a-secret-key"


def engine_of(
    *addresses: UpstreamAddress, tokenizer: Any = None, timeout_s: float = 20, **options: Any
) -> RemoteEngine:
    letters: Tokenizer = tokenizer or Alphabet()
    vocabulary = len(tokenizer) if tokenizer else LETTERS
    model = ModelInfo(letters, frozenset([END]), 64, vocabulary)
    return RemoteEngine(model, Router([Upstream(each, timeout_s=timeout_s) for each in addresses]), **options)


@asynccontextmanager
async def engine_at(
    *servers: WireServer, kind: str | None = None, model: str | None = None, **options: Any
) -> AsyncIterator[RemoteEngine]:
    """The servers are there already, and are not checked."""
    engine = engine_of(*(UpstreamAddress(server.url, KEY, kind, model) for server in servers), **options)
    try:
        yield engine
    finally:
        await engine.stop()


async def read(pieces: AsyncGenerator[Piece, None]) -> list[Piece]:
    return [piece async for piece in pieces]


def text_of(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)
