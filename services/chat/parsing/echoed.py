"""Answers of which only the prompt is wanted."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from services.engine.base import Piece


async def prompt_only(pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
    """Ends where the answer begins."""
    async with aclosing(pieces):
        async for piece in pieces:
            yield replace(piece, text="", token_ids=(), logprobs=(), finish="length", stop=None)
            return
