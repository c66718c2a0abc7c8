"""The affinity key of a turn."""

from collections.abc import Iterator, Sequence

from services import affinity
from services.chat.items import Item

LOOK = 4096  # characters of a text or an encoded image


def affinity_key(
    owner: str,
    *,
    conversation: str | None,
    previous: str | None,
    cache_key: str | None,
    instructions: str | None,
    input: Sequence[Item],
) -> str:
    """The first of these that there is; of the texts, what a conversation's turns have in common: the system text and
    the first user message."""
    if key := affinity.current.get():
        return key
    if conversation:
        return affinity.key_of([owner, conversation])
    if previous:
        return affinity.of_answer(previous)
    return affinity.key_of([owner, cache_key] if cache_key else [owner, *_beginning(instructions, input)])


def _beginning(instructions: str | None, input: Sequence[Item]) -> Iterator[str]:
    """Up to the first message of the user, that included."""
    yield (instructions or "")[:LOOK]
    for item in input:
        content = item.get("content") or ()
        for part in [{"text": content}] if isinstance(content, str) else content:
            yield from (value[:LOOK] for value in part.values() if isinstance(value, str))
        if item.get("role") == "user":
            return
