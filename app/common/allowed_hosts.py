"""Host names accepted while there are no API keys: protection against DNS rebinding.

A web page whose name resolves to this server's address has the same origin as this server for the browser; only the
Host header tells the two apart. An address cannot be rebound: a page loaded from an address can only reach that one.
"""

import re
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

ANY = "*"
EVERY_ADDRESS = ("", "0.0.0.0", "::")  # bound to one of these, a server is reached by every address of the machine
AUTHORITY = re.compile(r"(?:\[([^\s/@\[\]]+)\]|([^\s:/@\[\]]+))(?::\d{0,5})?")


class AllowedHosts:
    """`bound`: the address or name that the server listens on; `names`: further names, `*.` matches subdomains."""

    def __init__(self, bound: str, names: Sequence[str]) -> None:
        self._is_on_every_address = bound in EVERY_ADDRESS
        self._bound = _name(bound)
        self._machine = _name(socket.gethostname())
        self._names = [name if name == ANY else _name(name) for name in names]

    def permits(self, host: str | None, local_address: str | None) -> bool:
        """`local_address`: the address of our end of the connection."""
        if not host or ANY in self._names:  # browsers always send one
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
    """The name without port, brackets and trailing dot; empty if no browser would send it."""
    if _address(host):  # IPv6 without brackets, as in settings
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
    """The server may be bound to another address than the setting says: `uvicorn app.main:app --host …`."""
    address = _address(local_address or "")
    return address is not None and not _is_loopback(address)
