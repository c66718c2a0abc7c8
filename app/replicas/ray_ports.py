"""Replicas on Ray listen for each other on all interfaces, also where their node has a loopback address only."""

from typing import Any

from ray.serve._private import replica
from ray.util import get_node_ip_address

LOOPBACK = "127.0.0.1"


def keep_to_loopback() -> None:
    """Before the replica is initialised. Where Ray has renamed its own function, this does nothing."""
    add: Any = getattr(replica, "add_port_to_grpc_server", None)
    if add is not None and get_node_ip_address() == LOOPBACK:
        replica.add_port_to_grpc_server = lambda server, address: add(server, address.replace("[::]", LOOPBACK))
