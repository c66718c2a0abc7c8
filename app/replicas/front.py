"""Accepts connections, and hands each over to the replica that its request belongs to."""

import asyncio
import logging
import resource
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from app.replicas.affinity import Head, key, parse
from app.replicas.channel import Channel
from app.replicas.gone import Begun, last_bytes
from services import rendezvous

logger = logging.getLogger(__name__)

LOOK = 65536  # bytes of a request that are looked at
LOOK_S = 0.25  # within which a request should be here; what comes later is read by any replica
POLL_S = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
FILES = 64  # that are not connections
OWN_PATHS = (b"/metrics", b"/health/ready", b"/health")


@dataclass(slots=True, eq=False)
class Member:
    """A replica as the front sees it."""

    name: str
    channel: Channel | None = None
    is_ready: bool = False
    is_leaving: bool = False
    open: dict[int, "Handed"] = field(default_factory=dict)

    @property
    def takes_requests(self) -> bool:
        return self.channel is not None and not self.is_leaving


@dataclass(slots=True)
class Handed:
    """A connection that a replica answers. The front keeps it open, to tell its client if the replica is gone."""

    socket: socket.socket
    begun: Begun | None = None


class Front:
    """`own`: answers requests that concern all replicas, by path; the raw answer, or None to pass them on."""

    def __init__(self, own: Callable[[Head], Awaitable[bytes | None]]) -> None:
        self.members: list[Member] = []
        self._own = own
        self._numbers = count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    def start(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept(listener))

    async def stop(self) -> None:
        """No connection is taken from here on; those that were taken go on."""
        if self._accepting:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
        if self._tasks:
            await asyncio.wait(self._tasks)

    def close(self) -> None:
        """Lets go of all replicas and of the connections that they have."""
        for member in self.members:
            if member.channel:
                member.channel.close()
            for handed in member.open.values():
                handed.socket.close()
        self.members.clear()

    def join(self, member: Member, end: socket.socket, on_lost: Callable[[], None]) -> None:
        """Connects a replica that has just been started."""

        def received(packet: dict[str, Any], files: list[int]) -> None:
            self._note(member, packet)

        def lost() -> None:
            self._lose(member)
            on_lost()

        member.channel = Channel(end, received, lost)
        self.members.append(member)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # no file is left
                logger.warning("a connection cannot be accepted: %s", error.strerror)
                await asyncio.sleep(0.1)
                continue
            task = loop.create_task(self._route(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _route(self, connection: socket.socket) -> None:
        try:
            head = await _look(connection)
            if head is None:
                connection.close()
            elif head.path in OWN_PATHS and (answer := await self._own(head)) is not None:
                await _answer(connection, answer)
            elif not self.hand_over(connection, key(head)):
                await _answer(connection, last_bytes(None))
        except OSError:  # the client has left
            connection.close()
        except Exception:
            logger.exception("A connection could not be handed over")
            connection.close()

    def hand_over(self, connection: socket.socket, key: str | None) -> bool:
        """Gives it to a replica; whether one has taken it."""
        for member in self._candidates(key):
            assert member.channel
            number = next(self._numbers)
            try:
                member.channel.hand_over({"number": number, "affinity": key or ""}, connection)
            except OSError:
                continue
            member.open[number] = Handed(connection)
            return True
        return False

    def _candidates(self, key: str | None) -> Sequence[Member]:
        members = [each for each in self.members if each.takes_requests]
        members = [each for each in members if each.is_ready] or members
        if key is None:
            return sorted(members, key=lambda each: len(each.open))
        return rendezvous.ranked(key.encode(), members, lambda each: each.name, lambda each: len(each.open))

    def _note(self, member: Member, packet: dict[str, Any]) -> None:
        match packet:
            case {"ended": number}:
                if handed := member.open.pop(number, None):
                    handed.socket.close()
            case {"begun": number, "path": path, "content_type": content_type, "is_chunked": is_chunked}:
                if handed := member.open.get(number):
                    handed.begun = Begun(path, content_type, is_chunked)
            case {"ready": ready, "draining": draining}:
                member.is_ready, member.is_leaving = ready, member.is_leaving or draining

    def _lose(self, member: Member) -> None:
        """Its clients are told; what it has stored goes on elsewhere."""
        if member.channel:
            member.channel.close()
        member.channel, member.is_ready = None, False
        self.members.remove(member)
        for handed in member.open.values():
            _say(handed.socket, last_bytes(handed.begun))
        member.open.clear()


async def _look(connection: socket.socket) -> Head | None:
    """The beginning of the request, which stays in the socket; None: the client has left."""
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    deadline = loop.time() + LOOK_S
    polls = iter(POLL_S)
    while True:
        try:
            data = connection.recv(LOOK, socket.MSG_PEEK)
            if not data:
                return None
        except BlockingIOError:
            data = b""
        head = parse(data) if data else Head()
        is_all = head.is_complete or len(data) == LOOK or (head.headers is not None and head.method != b"POST")
        if is_all or loop.time() > deadline:
            return head
        await asyncio.sleep(next(polls, POLL_S[-1]))


async def _answer(connection: socket.socket, answer: bytes) -> None:
    _forget_request(connection)
    await asyncio.get_running_loop().sock_sendall(connection, answer)
    connection.close()


def _say(connection: socket.socket, text: bytes) -> None:
    with connection, suppress(OSError):
        _forget_request(connection)
        connection.send(text)


def _forget_request(connection: socket.socket) -> None:
    """Bytes that nobody has read would reset the connection, and what was sent with it."""
    with suppress(BlockingIOError):
        connection.recv(LOOK)


def raise_file_limit() -> None:
    """A connection takes one file of the front and one of its replica."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
