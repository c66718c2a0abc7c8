"""Which requests begin alike: they are served best where the others were."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b

from services.engine.base import Message


def affinity(prompt_cache_key: str | None, messages: Iterable[Message], owner: str) -> str:
    """Of the client's own key; else of what a conversation's turns have in common: system text, first user message."""
    digest = blake2b(owner.encode(), digest_size=16)
    for part in [prompt_cache_key] if prompt_cache_key else _beginning(messages):
        digest.update(b"\0" + part.encode(errors="surrogatepass"))
    return digest.hexdigest()


def _beginning(messages: Iterable[Message]) -> Iterator[str]:
    """Up to the first message of the user, that included."""
    for message in messages:
        yield str(message["content"])
        if message["role"] == "user":
            return
