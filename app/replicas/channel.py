"""Packets between the front and a replica: connections one way, what becomes of them the other."""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

import orjson

MAX_PACKET = 4096


class Channel:
    """One end. A packet that cannot be sent at once waits, except those with a connection."""

    def __init__(
        self, end: socket.socket, received: Callable[[dict[str, Any], list[int]], None], lost: Callable[[], None]
    ):
        end.setblocking(False)
        self._end = end
        self._received = received
        self._lost = lost
        self._waiting: deque[bytes] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(end, self._read)

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def send(self, packet: dict[str, Any]) -> None:
        self._waiting.append(orjson.dumps(packet))
        self._write()

    def hand_over(self, packet: dict[str, Any], connection: socket.socket) -> None:
        """Raises OSError if the other end is gone or does not keep up."""
        socket.send_fds(self._end, [orjson.dumps(packet)], [connection.fileno()])

    def close(self) -> None:
        if self._end.fileno() < 0:
            return
        self._loop.remove_reader(self._end)
        self._loop.remove_writer(self._end)
        self._end.close()

    def _write(self) -> None:
        while self._waiting:
            try:
                self._end.send(self._waiting[0])
            except BlockingIOError:
                self._loop.add_writer(self._end, self._write)
                return
            except OSError:
                self._waiting.clear()  # the reader notices
                return
            self._waiting.popleft()
        self._loop.remove_writer(self._end)

    def _read(self) -> None:
        for _ in range(64):
            try:
                data, files, _, _ = socket.recv_fds(self._end, MAX_PACKET, 1)
            except BlockingIOError:
                return
            except OSError:  # reset, or closed meanwhile
                data, files = b"", []
            if self._end.fileno() < 0:
                return
            if not data:
                self._loop.remove_reader(self._end)
                self._lost()
                return
            self._received(orjson.loads(data), files)
