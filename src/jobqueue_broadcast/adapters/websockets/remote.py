"""Where a peer comes from: its address, through the proxies the host named, and what limits count.

`X-Forwarded-For` is what the peer says of itself unless a proxy wrote it. So it is read only when
the connection comes from a proxy the host trusts, from the right, and only as far as proxies it
trusts have written: the right-most address that is not one of theirs is the peer's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from jobqueue_broadcast.errors import InvalidArgument

__all__ = ["LOCAL", "TrustedProxies", "counted_as"]

LOCAL = "local"
"""The address of a peer on a Unix socket; in `trusted_proxies` it means a proxy on one."""

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class TrustedProxies:
    """The proxies whose `X-Forwarded-For` is believed.

    Args:
        networks: Addresses and networks (`"10.0.0.0/8"`, `"::1"`), or `"local"` for Unix sockets.

    Raises:
        InvalidArgument: One of them is neither.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        if isinstance(networks, str):
            raise InvalidArgument(f"trusted_proxies: expected a collection, got {networks!r}")
        names = list(networks)
        self._local = LOCAL in names
        self._networks = [_network(name) for name in names if name != LOCAL]

    def peer(self, remote: str, forwarded_for: Sequence[str]) -> str:
        """Return the peer's address.

        Args:
            remote: Where the connection comes from.
            forwarded_for: The `X-Forwarded-For` headers, in order.
        """
        if not self._networks and not self._local:
            return remote
        named = [each.strip() for value in forwarded_for for each in value.split(",")]
        while self._trusts(remote) and named:
            address = _address(named.pop())
            if address is None:
                # Not an address: whoever wrote it, nothing to the left can be believed.
                break
            remote = str(address)
        return remote

    def _trusts(self, remote: str) -> bool:
        if remote == LOCAL:
            return self._local
        address = _address(remote)
        return address is not None and any(address in network for network in self._networks)


def counted_as(remote: str) -> str:
    """Return what connections from an address are counted under.

    One customer is commonly given a whole /64 of IPv6 (RFC 6177), so that is what counts as one.
    """
    address = _address(remote)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((address.packed, 64), strict=False))
    return remote if address is None else str(address)


def _address(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _network(text: str) -> _Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise InvalidArgument(
            f"trusted_proxies: expected addresses, networks or 'local', got {text!r}"
        ) from None
