"""Host names that a foreign page cannot have."""

import socket

import pytest

from app.common.allowed_hosts import AllowedHosts

LOOPBACK, LAN = "127.0.0.1", "192.168.1.5"
MACHINE = socket.gethostname().lower()


def permits(host: str | None, *, bound: str = LOOPBACK, names: tuple[str, ...] = (), local: str | None = None) -> bool:
    return AllowedHosts(bound, names).permits(host, local or LOOPBACK)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LocalHost:8000", "localhost.", "app.localhost:3000", "127.0.0.1", "127.0.0.1:8000"),
        *("127.8.9.10", "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]:80", "localhost:", None, ""),
    ],
)
def test_loopback_is_always_permitted(host: str | None) -> None:
    assert permits(host)


@pytest.mark.parametrize(
    "host",
    [
        *("rebound.example", "rebound.example:8000", "localhost.rebound.example", "rebound-localhost", "notlocalhost"),
        *("127.0.0.1.rebound.example", "127.0.0.1.nip.io:8000", "127.0.0.1@rebound.example", "localhost@x", "[::1"),
        *("localhost:8000:8000", "localhost/", "local host", "localhost:80a", "[localhost.x]", ".", ":8000", "127.1"),
    ],
)
@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0", "::", "192.168.1.5"])
def test_other_names_are_never_permitted(host: str, bound: str) -> None:
    assert not permits(host, bound=bound, local=LAN)


@pytest.mark.parametrize(
    "host", ["192.168.1.5:8000", "10.0.0.1", "8.8.8.8", "[fe80::1]:8000", MACHINE, f"{MACHINE}:80"]
)
def test_other_addresses_and_the_machine_name_are_permitted_if_the_server_listens_there(host: str) -> None:
    assert not permits(host)
    for bound in ("0.0.0.0", "::"):
        assert permits(host, bound=bound)
    assert permits(host, local=LAN)  # bound by `uvicorn --host`, unlike the setting
    assert permits(host, local="fe80::1")
    assert not permits(host, local="/run/parley.sock")


def test_the_bound_address_or_name_is_permitted() -> None:
    assert permits("192.168.1.5:8000", bound="192.168.1.5")
    assert permits("[FE80::0:1]", bound="fe80::1")
    assert permits("Box.lan:8000", bound="box.lan")
    assert not permits("other.lan", bound="box.lan")


def test_configured_names_are_permitted() -> None:
    names = ("Chat.example", "*.example.org", "10.1.2.3", "fe80::1")
    for host in ("chat.example:443", "a.example.org", "a.b.example.org:8", "10.1.2.3:1", "[fe80::1]"):
        assert permits(host, names=names)
    for host in ("example.org", "badexample.org", "chat.example.evil", "10.1.2.4"):
        assert not permits(host, names=names)
    assert permits("whatever", names=("*",))
