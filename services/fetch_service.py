"""Fetches URLs of requests, from public addresses only (protection against SSRF).

A name is resolved once, all its addresses are checked, and the connection goes to a checked address, so that a second
DNS answer cannot lead elsewhere. Redirects are checked the same way.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from ssl import SSLContext

import httpx2

from services import tracing
from services.errors import InvalidRequest

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

MAX_REDIRECTS = 3
PORTS = {"http": 80, "https": 443}
ANY_HOST = "*"
UNICAST = IPv6Network("2000::/3")  # the allocated part of IPv6
# global for Python's ipaddress, but used by protocols or as relays into IPv4
NOT_PUBLIC = [ip_network(each) for each in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20")]


async def resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def is_public(text: str) -> bool:
    try:
        address = ip_address(text)
    except ValueError:  # an IPv6 address with a zone
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    known = isinstance(address, IPv4Address) or address in UNICAST
    special = address.is_multicast or address.is_reserved or any(address in network for network in NOT_PUBLIC)
    return known and address.is_global and not special


class Fetcher:
    """`hosts`: allowed hosts, "*" for any public one. Errors name `param` and never the URL."""

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        max_bytes: int,
        timeout_s: float,
        accept: str = "image/*",
        resolve: Resolve = resolve,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._hosts = {host.lower() for host in hosts}
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._accept = accept
        self._resolve = resolve
        self._transport = transport

    async def get(self, url: str, param: str) -> bytes:
        try:
            with tracing.step("fetch image", kind="client"):
                async with asyncio.timeout(self._timeout_s), await self._client() as client:
                    return await self._follow(client, _parse(url))
        except _Rejected as error:
            raise InvalidRequest(f"The URL cannot be fetched: {error}", param=param) from error
        except TimeoutError as error:
            raise InvalidRequest("The URL cannot be fetched: it takes too long", param=param) from error
        except (httpx2.HTTPError, OSError) as error:
            raise InvalidRequest("The URL cannot be fetched: its server does not answer", param=param) from error

    async def _client(self) -> httpx2.AsyncClient:
        """One per fetch: a connection is checked for its host and must not be reused for another one at its address."""
        context = await asyncio.to_thread(_ssl_context)
        # ignores the proxies and .netrc of the server's environment
        return httpx2.AsyncClient(transport=self._transport, verify=context, trust_env=False, timeout=self._timeout_s)

    async def _follow(self, client: httpx2.AsyncClient, url: httpx2.URL) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            response = await client.send(await self._request(client, url), stream=True)
            try:
                if response.status_code == 200:
                    return await self._body(response)
                if not response.is_redirect:
                    raise _Rejected(f"its server answers with status {response.status_code}")
                url = _parse(response.headers.get("location", ""), url)
            finally:
                await response.aclose()
        raise _Rejected("it is redirected too often")

    async def _request(self, client: httpx2.AsyncClient, url: httpx2.URL) -> httpx2.Request:
        if ANY_HOST not in self._hosts and url.host.lower() not in self._hosts:
            raise _Rejected("its host is not among those that this server may ask")
        address = await self._address(url.host, PORTS[url.scheme])
        # not compressed: a few bytes could expand to any size
        headers = {
            "Host": url.netloc.decode(),
            "Accept": self._accept,
            "Accept-Encoding": "identity",
            "User-Agent": "parley",
        }
        return client.build_request(
            "GET",
            url.copy_with(host=address, fragment=None),
            headers=headers,
            extensions={"sni_hostname": url.raw_host.decode()},
        )

    async def _address(self, host: str, port: int) -> str:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise _Rejected("its host is not known") from error
        if not addresses or not all(map(is_public, addresses)):
            raise _Rejected("its host has no public address")
        return addresses[0]

    async def _body(self, response: httpx2.Response) -> bytes:
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) > self._max_bytes:
                raise _Rejected(f"it has more than {self._max_bytes} bytes")
        return bytes(body)


class _Rejected(Exception): ...


def _parse(text: str, base: httpx2.URL | None = None) -> httpx2.URL:
    try:
        url = base.join(text) if base else httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError) as error:
        raise _Rejected("it is not a URL") from error
    if url.scheme not in PORTS or not url.host:
        raise _Rejected("it does not begin with http:// or https:// and a host")
    if url.userinfo or url.port not in (None, PORTS[url.scheme]):
        raise _Rejected("it names a user or a port")
    return url


@cache
def _ssl_context() -> SSLContext:
    return httpx2.create_ssl_context(trust_env=False)
