"""Replicas on Ray listen for each other on all interfaces, also where their node has a loopback address only."""

import logging
from typing import Any

from ray.serve._private import replica
from ray.util import get_node_ip_address

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


def keep_to_loopback() -> None:
    """Before the replica is initialised."""
    if get_node_ip_address() != LOOPBACK:
        return
    add: Any = getattr(replica, "add_port_to_grpc_server", None)
    if add is None:
        logger.warning("This version of Ray cannot be kept to the loopback address: replicas listen on all interfaces")
    else:
        replica.add_port_to_grpc_server = lambda server, address: add(server, address.replace("[::]", LOOPBACK))
