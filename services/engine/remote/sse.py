"""Server-sent events from a body that arrives in any portions."""

from collections.abc import AsyncGenerator, AsyncIterator


class BrokenEvents(ValueError):
    """The body is no stream of events."""


MAX_EVENT = 1 << 24  # bytes; prompt logprobs of a long prompt come in one


async def events(body: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The data of each event that has some, its lines joined by a line feed.

    Bytes are split at line ends only, so no character is cut. An event without the empty line that ends it is left out,
    as the standard says. Raises BrokenEvents for a line or an event that does not end.
    """
    lines: list[bytes] = []
    size = 0
    async for line in _lines(body):
        if not line:
            if lines:
                yield b"\n".join(lines)
            lines, size = [], 0
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
            size += len(value)
        if size > MAX_EVENT:
            raise BrokenEvents("an event is too long")


async def _lines(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines end with CR, LF or both; the LF of a pair may come with the next portion."""
    rest, after_cr = bytearray(), False
    async for portion in body:
        data = portion[1:] if after_cr and portion.startswith(b"\n") else portion
        after_cr = portion.endswith(b"\r") if portion else after_cr
        rest += data
        if b"\n" not in data and b"\r" not in data:
            if len(rest) > MAX_EVENT:
                raise BrokenEvents("a line is too long")
            continue
        *whole, last = bytes(rest).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        rest = bytearray(last)
        for line in whole:
            yield line
