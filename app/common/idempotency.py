"""The Idempotency-Key header: a repeated request with the same key gets the answer of the first one."""

import hashlib
from typing import Annotated

from fastapi import Depends, Header, Request

from services.turn_service import IdempotencyKey


async def _idempotency_key(
    request: Request,
    idempotency_key: Annotated[
        str | None, Header(max_length=255, description="the same answer for the same request, for a day")
    ] = None,
) -> IdempotencyKey | None:
    if not idempotency_key:
        return None
    path = request.url.path.removeprefix("/v1")
    return IdempotencyKey(_hash(idempotency_key.encode()), _hash(path.encode(), await request.body()))


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\n".join(parts)).hexdigest()


Key = Annotated[IdempotencyKey | None, Depends(_idempotency_key)]
