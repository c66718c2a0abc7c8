"""One server that computes: a pool of connections, what is known of it, and how it has fared."""

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import orjson

from services.engine.base import Job, UpstreamAddress, UpstreamStats
from services.engine.grammar.lark import InvalidGrammar
from services.engine.remote import errors, sse
from services.engine.remote.discovery import Server, UnknownServer, describe
from services.engine.remote.kinds import KINDS
from services.engine.remote.kinds.base import ErrorEvent, Output, RemoteJob
from services.errors import InvalidRequest, ServiceError, Unavailable, literal
from services.tracing import Span, Value, current, ending

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_S = 5.0
PROBE_S = 5.0
KEPT_S = 2.0  # an idle connection: uvicorn closes its own after 5 s, and a request that meets the close is lost
DRAIN_S = 0.5  # for the end of a body behind its last event
MAX_ERROR_BYTES = 1 << 16
END = b"[DONE]"
EJECT_AFTER = 3  # broken connections in a row
UNREADABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError)
BROKEN = (httpx2.HTTPError, OSError)
GONE = (httpx2.ConnectError, httpx2.ConnectTimeout)  # one is enough


class Upstream:
    def __init__(
        self, address: UpstreamAddress, *, timeout_s: float, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        """`timeout_s`: without a byte from it. Raises ValueError for what is no address."""
        self._root = address.url.rstrip("/").removesuffix("/v1")
        parts = urlsplit(self._root)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an upstream's address begins with http:// or https:// and has a host")
        if address.kind is not None and address.kind not in KINDS:
            raise ValueError(f"'{address.kind}' is no kind of upstream: {', '.join(KINDS)}")
        self.name = parts.netloc.rpartition("@")[2] + parts.path
        self._address = address
        self._client = _client(address.key, timeout_s, transport)
        self._server: Server | None = None  # None: not asked yet
        self._asking = asyncio.Lock()
        self._failed_in_a_row = 0
        self._num_requests = 0
        self._num_failures = 0
        self.healthy = True  # until it shows otherwise
        self.running = 0

    @property
    def max_length(self) -> int | None:
        """Tokens of prompt and answer; None: not known."""
        return self._server.model.max_length if self._server else None

    @property
    def named_length(self) -> int | None:
        """The same, if it is that of the model that `fetch` names."""
        return self.max_length if self._server and self._named(self._server) else None

    def _named(self, server: Server) -> dict[str, Any]:
        """A server of several models has a default one for each kind of request."""
        name = self._address.model or (server.model.name if server.kind.names_model else None)
        return {"model": name} if name else {}

    def stats(self) -> UpstreamStats:
        return UpstreamStats(self.name, self.healthy, self.running, self._num_requests, self._num_failures)

    async def close(self) -> None:
        await self._client.aclose()

    async def check(self) -> None:
        """Asks how it is: ejects it, or takes it back."""
        try:
            async with asyncio.timeout(PROBE_S):
                server = await self._described()
                response = await self._client.get(self._root + server.kind.health)
            self._set_health(response.status_code == 200)
        except (ServiceError, TimeoutError, *BROKEN):
            self._set_health(False)

    def _set_health(self, is_well: bool) -> None:
        if is_well != self.healthy:
            logger.warning("upstream %s: %s", self.name, "taken back" if is_well else "ejected")
        self.healthy = is_well
        self._failed_in_a_row = 0
        if not is_well:
            self._server = None  # another one may take its place

    @asynccontextmanager
    async def answering(self, job: RemoteJob) -> AsyncIterator[AsyncGenerator[Output, None]]:
        """Sends a job; within the `with` its outputs can be read. Leaving it early ends the request at the server, too.

        Raises Unavailable and Overloaded, which another upstream may be spared, and the other errors of services.
        """
        async with self._watched():
            server = await self._described()
            job = _within(job, server.model.max_length)
            body = await _body(server, job)
            async with (
                self._sent(server.kind.path, body, job.job) as response,
                aclosing(self._outputs(response, server, job)) as outputs,
            ):
                yield outputs

    async def fetch(self, path: str, body: Callable[[Server], dict[str, Any]], read: Callable[[Any], T], job: Job) -> T:
        """What `read` makes of the answer to one request, which comes as a whole. `job`: what errors are about."""
        async with self._watched():
            server = await self._described()
            content = await asyncio.to_thread(lambda: orjson.dumps(body(server) | self._named(server)))
            async with self._sent(path, content, job) as response:
                try:
                    content = await response.aread()
                except BROKEN as error:
                    raise errors.interrupted(self.name, error) from error
            try:
                return await asyncio.to_thread(lambda: read(orjson.loads(content)))
            except UNREADABLE as error:
                raise errors.garbled(self.name, error) from error

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """Around a request: it counts, and its failures."""
        self.running += 1
        try:
            yield
            self._failed_in_a_row = 0
        except Unavailable as error:
            self._fail(error.__cause__)
            raise
        finally:
            self.running -= 1

    def _fail(self, cause: BaseException | None) -> None:
        """Ejects it for what the network shows. An error that it answers with may be of one caller's making."""
        self._num_failures += 1
        if isinstance(cause, BROKEN):
            self._failed_in_a_row += 1
        if isinstance(cause, GONE) or self._failed_in_a_row >= EJECT_AFTER:
            self._set_health(False)

    async def _described(self) -> Server:
        async with self._asking:
            if self._server is None:
                try:
                    address = self._address
                    self._server = await describe(self._client, self._root, address.kind, address.model)
                except BROKEN as error:
                    raise errors.unreachable(self.name, error) from error
                except (UnknownServer, *UNREADABLE) as error:
                    raise errors.unknown(self.name, error) from error
            return self._server

    @asynccontextmanager
    async def _sent(self, path: str, body: bytes, job: Job) -> AsyncIterator[httpx2.Response]:
        """A response with status 200. Raises the errors of others."""
        with ending(self._span(path)) as span:
            headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **span.headers()}
            request = self._client.build_request("POST", self._root + path, content=body, headers=headers)
            self._num_requests += 1
            try:
                response = await self._client.send(request, stream=True)
            except BROKEN as error:
                raise errors.unreachable(self.name, error) from error
            span.set({"http.response.status_code": response.status_code})
            try:
                if response.status_code != 200:
                    raise await self._refusal(response, job)
                yield response
            finally:
                await response.aclose()

    def _span(self, path: str) -> Span:
        if not (span := current()).is_recording:
            return span
        address = urlsplit(self._root)
        attributes: dict[str, Value] = {"http.request.method": "POST", "server.address": address.hostname or ""}
        if address.port:
            attributes["server.port"] = address.port
        return span.child(f"POST {path}", attributes, kind="client")

    async def _refusal(self, response: httpx2.Response, job: Job) -> ServiceError:
        body = b""
        with suppress(*BROKEN):
            async for portion in response.aiter_bytes():
                body += portion
                if len(body) > MAX_ERROR_BYTES:
                    break
        return self._error(response.status_code, response.headers, body.decode(errors="replace"), job)

    def _error(self, status: int, headers: Mapping[str, str], text: str, job: Job) -> ServiceError:
        limit = self.max_length or len(job.prompt)
        return errors.of_status(self.name, status, headers, text, job, limit)

    async def _outputs(self, response: httpx2.Response, server: Server, job: RemoteJob) -> AsyncGenerator[Output, None]:
        reader = server.kind.reader(job)
        is_finished = False
        try:
            async with aclosing(sse.events(response.aiter_bytes())) as events:
                async for data in events:
                    if data == END:
                        await _drain(events)
                        break
                    output = reader.read(orjson.loads(data))
                    is_finished = is_finished or output.finish is not None
                    yield output
        except BROKEN as error:
            raise errors.interrupted(self.name, error) from error
        except ErrorEvent as error:
            raise self._error(error.status, {}, error.text, job.job) from error
        except UNREADABLE as error:
            raise errors.garbled(self.name, error) from error
        if not is_finished:
            ended = httpx2.RemoteProtocolError("no finish")
            raise errors.interrupted(self.name, ended) from ended


def _within(job: RemoteJob, length: int | None) -> RemoteJob:
    """When the job was made, the server's length may not have been known."""
    room = length and max(1, length - len(job.job.prompt))
    return replace(job, max_tokens=room) if room and room < job.max_tokens else job


async def _body(server: Server, job: RemoteJob) -> bytes:
    grammar = job.job.sampling.grammar
    if grammar is None:
        return orjson.dumps(server.kind.body(job, server.model))
    try:  # in a thread: a long grammar is read for some time
        return orjson.dumps(await asyncio.to_thread(server.kind.body, job, server.model))
    except InvalidGrammar as error:
        raise InvalidRequest(f"'%s': {literal(str(error))}", grammar.param) from error


async def _drain(events: AsyncGenerator[bytes, None]) -> None:
    """Reads a body to its end, so that its connection serves again."""
    with suppress(TimeoutError, *BROKEN):
        async with asyncio.timeout(DRAIN_S):
            async for _ in events:
                pass


def _client(key: str | None, timeout_s: float, transport: httpx2.AsyncBaseTransport | None) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        transport=transport,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx2.Timeout(timeout_s, connect=CONNECT_S, pool=None),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=KEPT_S),
        verify=ssl.create_default_context(),
        trust_env=False,  # a proxy of the environment is for other addresses
    )
