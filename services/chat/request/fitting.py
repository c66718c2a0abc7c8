"""Which of the oldest messages are left out so that a prompt fits its model."""

from collections.abc import Awaitable, Callable

from services.chat.compaction.window import Chat, instructions


async def shortened(messages: Chat, fits: Callable[[Chat], Awaitable[bool]]) -> Chat | None:
    """Without the oldest, as few as possible or some more: a long chat is cut at the same place for several turns, so
    that the engine has most of it in its cache. None where not even the newest fit.

    Instructions stay, what is left begins with something of the user's, and calls stay with what they returned.
    """
    if await fits(messages):
        return messages
    cuts = _cuts(messages)
    low, high = 0, len(cuts)
    while low < high:
        middle = (low + high) // 2
        if await fits(_without(messages, cuts[middle])):
            high = middle
        else:
            low = middle + 1
    return _without(messages, cuts[_on_grid(low, len(cuts))]) if low < len(cuts) else None


def left_out(messages: Chat, kept: Chat) -> Chat:
    """Those of `messages` that are not among the `kept` ones."""
    ids = {id(message) for message in kept}
    return [message for message in messages if id(message) not in ids]


def _on_grid(first: int, count: int) -> int:
    """Not before the first of them; a quarter of those after it is left out at most."""
    step = 1 << max(0, (count - first).bit_length() - 3)
    return -(-first // step) * step


def _cuts(messages: Chat) -> list[int]:
    """Where what is left may begin."""
    return [index for index, message in enumerate(messages) if message.role == "user" and index > 0]


def _without(messages: Chat, cut: int) -> Chat:
    return [*instructions(messages[:cut]), *messages[cut:]]
