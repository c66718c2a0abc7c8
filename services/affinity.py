"""The affinity key of a request: those with the same one are served best by the replica and the upstream of the others.

Eight hex digits, with which the id of the answer ends, too. An answer that continues another one, by its id, has its
key, and so all of a chain have that of their root. Affinity is only speed.
"""

import re
from collections.abc import Iterable
from contextvars import ContextVar
from hashlib import blake2b

KEY = re.compile(r"[0-9a-f]{8}")
LENGTH = 8

# of the running request, where its headers or the front of its replica name one; empty: its body decides
current: ContextVar[str] = ContextVar("affinity", default="")


def key_of(parts: Iterable[str | bytes]) -> str:
    digest = blake2b(digest_size=LENGTH // 2)
    for part in parts:
        digest.update((part.encode(errors="surrogatepass") if isinstance(part, str) else part) + b"\0")
    return digest.hexdigest()


def of_session(name: str) -> str:
    """`name`: a key already, or the client's own name for a session."""
    return name if KEY.fullmatch(name) else key_of([name])


def of_answer(id: str) -> str:
    """`id`: of one of this service's answers, or anything."""
    return of_session(id[-LENGTH:] if KEY.fullmatch(id[-LENGTH:]) else id)
