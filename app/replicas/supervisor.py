"""Starts the replicas, restarts those that die, and ends them."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress

from app.replicas import metrics
from app.replicas.affinity import Head
from app.replicas.channel import Channel
from app.replicas.front import Front, Member
from app.replicas.processes import Share, start

logger = logging.getLogger(__name__)

RESTART_S = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # before a replica that has died is started again
REFUSALS = (2, 3)  # exit codes of one that cannot start: the next would not, either
PAGE_S = 5.0  # for one replica's metrics
READY = {True: (b"200 OK", b'{"status":"ok"}'), False: (b"503 Service Unavailable", b'{"status":"loading"}')}


class Replica:
    """A place: its processes come and go, its name and its share of the machine stay."""

    def __init__(self, name: str, share: Share, front: Front) -> None:
        self.name = name
        self._share = share
        self._front = front
        self._is_ending = False
        self.was_ready = False
        self._process: subprocess.Popen[bytes] | None = None
        self.member = Member(name)

    def start(self) -> None:
        ours, theirs = Channel.pair()
        self._process = start(self.name, self._share, theirs)
        theirs.close()
        self.gone = asyncio.Event()
        self.member = Member(self.name)
        self._front.join(self.member, ours, self.gone.set)

    async def keep(self) -> int:
        """Until it ends by request, or cannot start. Returns its exit code."""
        num_failures = 0
        while True:
            await self.gone.wait()
            assert self._process
            code = await asyncio.to_thread(self._process.wait)
            if self._is_ending or (code in REFUSALS and not self.was_ready):
                return code
            num_failures = 0 if self.was_ready else num_failures + 1
            delay = RESTART_S[min(num_failures, len(RESTART_S) - 1)]
            logger.error("replica %s has ended (code %d); it is started again in %g s", self.name, code, delay)
            self.was_ready = False
            await asyncio.sleep(delay)
            self.start()

    async def ready(self) -> None:
        while not (self.member.is_ready or self.gone.is_set()):  # noqa: ASYNC110  # a packet sets it
            await asyncio.sleep(0.02)
        self.was_ready = self.member.is_ready

    async def replace(self) -> None:
        """Another process in its place; requests go there once it is ready, and the old one answers those it has."""
        old, process, gone = self.member, self._process, self.gone
        self.start()
        await self.ready()
        old.is_leaving = True
        assert process
        process.terminate()
        await gone.wait()
        await asyncio.to_thread(process.wait)

    def end(self) -> None:
        self._is_ending = True
        if self._process and self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.kill()


class Supervisor:
    def __init__(self, shares: Sequence[Share]) -> None:
        self._front = Front(self._answer)
        self._replicas = [Replica(str(index + 1), share, self._front) for index, share in enumerate(shares)]
        self._is_ready = False

    async def run(self, listener: socket.socket, stop_s: float) -> int:
        """Until a signal, or until a replica cannot start. `stop_s`: how long replicas may take to end."""
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, stopping.set)
        restarts = asyncio.Queue[None]()
        loop.add_signal_handler(signal.SIGUSR1, restarts.put_nowait, None)
        for replica in self._replicas:
            replica.start()
        self._front.start(listener)
        keeping = [asyncio.create_task(replica.keep()) for replica in self._replicas]
        watching = [asyncio.create_task(self._watch()), asyncio.create_task(self._restart_for_ever(restarts))]
        waiting = asyncio.create_task(stopping.wait())
        await asyncio.wait([waiting, *keeping], return_when=asyncio.FIRST_COMPLETED)
        codes = [task.result() for task in keeping if task.done()]
        await self._end(keeping, stop_s)
        for task in [*watching, waiting]:
            task.cancel()
        return codes[0] if codes else 0

    async def _end(self, keeping: "list[asyncio.Task[int]]", stop_s: float) -> None:
        await self._front.stop()
        for replica in self._replicas:
            replica.end()
        _, left = await asyncio.wait(keeping, timeout=stop_s)
        for replica in self._replicas:
            replica.kill()
        if left:
            await asyncio.wait(left)
        self._front.close()

    async def _watch(self) -> None:
        await asyncio.gather(*(replica.ready() for replica in self._replicas))
        self._is_ready = True
        logger.info("%d replicas are ready", len(self._replicas))
        while True:
            await asyncio.sleep(1)
            for replica in self._replicas:
                replica.was_ready = replica.was_ready or replica.member.is_ready

    async def _restart_for_ever(self, restarts: "asyncio.Queue[None]") -> None:
        """SIGUSR1: one after the other, so that all but one are there at any time."""
        while True:
            await restarts.get()
            logger.info("restarting the replicas, one after the other")
            for replica in self._replicas:
                await replica.replace()
            logger.info("all replicas are restarted")

    # --- requests that concern all of them ---

    async def _answer(self, head: Head) -> bytes | None:
        if head.path == b"/metrics":
            return await self._metrics(head)
        is_ready = self._is_ready and any(each.is_ready for each in self._front.members)
        if head.path == b"/health":
            return None if is_ready else _response(READY[True])
        return None if is_ready else _response(READY[False])

    async def _metrics(self, head: Head) -> bytes | None:
        members = [each for each in self._front.members if each.takes_requests]
        pages = await asyncio.gather(*(self._page(each, head) for each in members))
        refusal = next((page for page in pages if page and not page.startswith(b"HTTP/1.1 200")), None)
        if refusal:  # without a key
            return refusal
        texts = {
            each.name: page.partition(b"\r\n\r\n")[2].decode()
            for each, page in zip(members, pages, strict=True)
            if page
        }
        body = metrics.merged(texts).encode()
        return _response((b"200 OK", body), b"text/plain; version=0.0.4; charset=utf-8")

    async def _page(self, member: Member, head: Head) -> bytes:
        """Of one replica, over a connection of our own. Empty: it does not answer."""
        ours, theirs = socket.socketpair()
        key = [b"%b: %b\r\n" % (name, value) for name, value in (head.headers or {}).items() if name in KEYS]
        request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % b"".join(key)
        with ours, suppress(OSError, TimeoutError):
            ours.setblocking(False)
            assert member.channel
            with theirs:
                member.channel.hand_over({"number": -1, "affinity": ""}, theirs)
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(PAGE_S):
                await loop.sock_sendall(ours, request)
                page = bytearray()
                while data := await loop.sock_recv(ours, 65536):
                    page += data
            return bytes(page)
        return b""


KEYS = (b"authorization", b"x-api-key")


def _response(answer: tuple[bytes, bytes], kind: bytes = b"application/json") -> bytes:
    status, body = answer
    head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    return head % (status, kind, len(body)) + body


def run(listener: socket.socket, shares: Sequence[Share], stop_s: float) -> int:
    logger.info("%d replicas; SIGUSR1 to process %d restarts them one by one", len(shares), os.getpid())
    return asyncio.run(Supervisor(shares).run(listener, stop_s))
