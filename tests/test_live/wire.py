"""A TCP proxy that listens in, and can be told to cut a connection in the middle of an event."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Thread

EVENT = b"data: "


class Wire:
    """What the server said, each connection by itself. `cut_at`: the events of the first stream until it is cut."""

    def __init__(self, server_port: int, cut_at: int | None) -> None:
        self._server_port = server_port
        self._cut_at = cut_at
        self._lock = Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.heard: list[bytearray] = []
        self.num_cut = 0

    def accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                Thread(target=self._join, args=[client], daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _join(self, client: socket.socket) -> None:
        heard = bytearray()
        self.heard.append(heard)
        with client, socket.create_connection(("127.0.0.1", self._server_port)) as server:
            asking = Thread(target=_copy, args=[client, server], daemon=True)
            asking.start()
            with suppress(OSError):
                self._listen(server, client, heard)
            for end in (client, server):  # wakes the other direction too
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            asking.join()

    def _listen(self, server: socket.socket, client: socket.socket, heard: bytearray) -> None:
        while said := server.recv(65536):
            heard += said
            if self._is_to_be_cut(heard):
                client.sendall(said[: said.rindex(EVENT) + len(EVENT) + 1])  # in the event's first word
                return
            client.sendall(said)

    def _is_to_be_cut(self, heard: bytearray) -> bool:
        with self._lock:
            if self._cut_at is None or self.num_cut or heard.count(EVENT) < self._cut_at:
                return False
            self.num_cut += 1
            return True


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while said := source.recv(65536):
            target.sendall(said)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def wired(server_port: int, cut_at: int | None = None) -> Iterator[Wire]:
    wire = Wire(server_port, cut_at)
    Thread(target=wire.accept, daemon=True).start()
    try:
        yield wire
    finally:
        wire.close()
