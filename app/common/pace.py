"""How many requests begin at once.

A thousand that come in the same moment would keep the event loop busy for seconds, in which no probe is answered and no
stream goes on.
"""

import asyncio
from collections import deque

from starlette.types import ASGIApp, Receive, Scope, Send

from app.common.middleware import PROBES

MOST = 2  # in one iteration of the event loop: some milliseconds


class Pace:
    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._begun = 0  # in this iteration; more than 0: the next one is looked at, too
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        """In order of arrival. Returns at once unless many come at once."""
        loop = asyncio.get_running_loop()
        if not self._begun:
            loop.call_soon(self._next_iteration)
        if self._begun < self._most:
            self._begun += 1
            return
        self._waiting.append(turn := loop.create_future())
        await turn

    def _next_iteration(self) -> None:
        self._begun = 0
        while self._waiting and self._begun < self._most:
            turn = self._waiting.popleft()
            if not turn.done():  # else its request was cancelled
                turn.set_result(None)
                self._begun += 1
        if self._begun:
            asyncio.get_running_loop().call_soon(self._next_iteration)


class RequestPace:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._pace = Pace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PROBES:
            await self._pace.turn()
        await self._app(scope, receive, send)
