"""One request and the received bytes with their times. Nothing is parsed while a server is measured."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from time import perf_counter

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, TCPConnector

HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
NO_TIMEOUT = ClientTimeout(total=None, sock_connect=10)  # a round has a deadline
ERROR_LENGTH = 300


@dataclass(frozen=True, slots=True)
class Arrival:
    at: float  # seconds after sending
    data: bytes


@dataclass(frozen=True, slots=True)
class Exchange:
    arrivals: list[Arrival]
    seconds: float
    error: str | None


def session(key: str | None = None, headers: Mapping[str, str] = HEADERS) -> ClientSession:
    sent = {**headers, **({"Authorization": f"Bearer {key}"} if key else {})}
    return ClientSession(connector=TCPConnector(limit=0, force_close=True), timeout=NO_TIMEOUT, headers=sent)


async def exchange(client: ClientSession, url: str, body: bytes, deadline: float) -> Exchange:
    """`deadline`: a time of the event loop's clock; what arrives until then counts."""
    started, arrivals = perf_counter(), list[Arrival]()
    try:
        async with asyncio.timeout_at(deadline), client.post(url, data=body) as response:
            async for data in response.content.iter_any():
                arrivals.append(Arrival(perf_counter() - started, data))
            error = refusal(response, arrivals)
    except (ClientError, OSError) as problem:  # OSError: also TimeoutError
        error = failure(problem)
    return Exchange(arrivals, perf_counter() - started, error)


def failure(problem: Exception) -> str:
    if isinstance(problem, TimeoutError):
        return "cut off at the end of its round's time"
    return f"{type(problem).__name__}: {problem}"


def refusal(response: ClientResponse, arrivals: list[Arrival]) -> str | None:
    if response.status == HTTPStatus.OK:
        return None
    text = b"".join(arrival.data for arrival in arrivals).decode(errors="replace")
    return f"HTTP {response.status}: {text[:ERROR_LENGTH]}"
