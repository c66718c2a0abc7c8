"""Which names this server answers to while nobody needs a key.

A web page whose own name is made to resolve to this server's address (DNS rebinding) is of the same origin as this
server for the browser, and its name in the header Host is all that tells. An address cannot be rebound: a page that
was loaded from an address talks to that one only.
"""

import re
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

ANY = "*"
EVERY_ADDRESS = ("", "0.0.0.0", "::")  # a server bound to one of these is reached by each of the machine's addresses
AUTHORITY = re.compile(r"(?:\[([^\s/@\[\]]+)\]|([^\s:/@\[\]]+))(?::\d{0,5})?")


class AllowedHosts:
    """`bound`: the address or name that the server listens on; `names`: further ones, `*.` in front for all below."""

    def __init__(self, bound: str, names: Sequence[str]) -> None:
        self._is_on_every_address = bound in EVERY_ADDRESS
        self._bound = _name(bound)
        self._machine = _name(socket.gethostname())
        self._names = [name if name == ANY else _name(name) for name in names]

    def permits(self, host: str | None, local_address: str | None) -> bool:
        """`local_address`: the end of the connection on this side."""
        if not host or ANY in self._names:  # browsers always name one
            return True
        name = _name(host)
        if not name:
            return False
        is_beyond_loopback = self._is_on_every_address or _is_beyond_loopback(local_address)
        if address := _address(name):
            return _is_loopback(address) or is_beyond_loopback or name in (self._bound, *self._names)
        return self._permits_name(name) or (is_beyond_loopback and name == self._machine)

    def _permits_name(self, name: str) -> bool:
        is_listed = any(name == each or (each.startswith("*.") and name.endswith(each[1:])) for each in self._names)
        return is_listed or name in ("localhost", self._bound) or name.endswith(".localhost")


def _name(host: str) -> str:
    """Without port, brackets and the root's dot; empty: none that a browser would send."""
    if _address(host):  # IPv6 as settings have it, without brackets
        return str(_address(host))
    found = AUTHORITY.fullmatch(host)
    name = (found[1] or found[2]).lower().removesuffix(".") if found else ""
    return str(_address(name) or name)


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(name)
    except ValueError:
        return None


def _is_loopback(address: IPv4Address | IPv6Address) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _is_beyond_loopback(local_address: str | None) -> bool:
    """Whoever started the server may have bound it otherwise than the setting says: `uvicorn app.main:app --host …`."""
    address = _address(local_address or "")
    return address is not None and not _is_loopback(address)
