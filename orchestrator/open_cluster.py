"""Does a cluster ask for a token? Asked by calling it without one.

A Ray cluster without token authentication runs code for whoever reaches its ports, and a client
that has a token is let in all the same. So a cluster that is joined by address is called once as
a stranger would call it, before it is shown our token, and refused if it answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from orchestrator.errors import ResourceError

Door = Literal["closed", "open", "unknown"]
# The smallest question there is; an empty message is a valid request.
_QUESTION = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_WAIT_S = 10.0


def door_of(address: str) -> Door:
    """How the control store at ``host:port`` answers a caller without a token."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(_QUESTION)(b"", timeout=_WAIT_S)
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else None
            refusals = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
            return "closed" if code in refusals else "unknown"
    return "open"


def place_of(address: str) -> str:
    """``host:port`` of an address, that of this machine's cluster for ``auto``; else empty."""
    from ray._private.services import canonicalize_bootstrap_address

    if address == "auto":
        return canonicalize_bootstrap_address("auto") or ""
    host, _, port = address.rpartition(":")
    return address if host and port.isdigit() and "://" not in address else ""


def refuse_open_cluster(address: str, door: Callable[[str], Door] = door_of) -> None:
    """Make sure that a cluster turns strangers away.

    Raises:
        ResourceError: it answers them, or it cannot be told.
    """
    found = door(address)
    if found == "closed":
        return
    what = (
        "the Ray cluster answers callers without a token"
        if found == "open"
        else "whether the Ray cluster asks for a token cannot be told"
    )
    raise ResourceError(
        what,
        address,
        "anyone who reaches its ports can run code as you",
        "start it with RAY_AUTH_MODE=token on every node (docs/cluster.md), or join it all the "
        "same with --set cluster.insecure=true",
    )
