"""Client addresses: loopback, trusted proxies (X-Forwarded-For), and keys of rate limits."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
ANY_PROXY = "*"
MAX_FORWARDED_HOPS = 32
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_loopback(host: str) -> bool:
    """Returns whether a name or address is loopback, without DNS."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class TrustedProxies:
    """The proxies whose `X-Forwarded-For` is believed (`--forwarded-allow-ips`)."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Takes addresses, networks, or `*` for whoever connects.

        Raises:
            ValueError: a name is none of these.
        """
        names = tuple(names)
        self._any = ANY_PROXY in names
        self._networks: list[_Network] = [ipaddress.ip_network(name) for name in names if name != ANY_PROXY]

    def __contains__(self, address: str) -> bool:
        """Whether an address is a proxy's."""
        return self._any or self._is_named(_parse(address))

    def client_key(self, peer: str, forwarded_for: Iterable[str]) -> str:
        """Returns the rate-limit key of a request's client, see `address_key`.

        Args:
            peer: address that the connection comes from.
            forwarded_for: the `X-Forwarded-For` headers in their order. Each proxy appends the address that
                it saw: the last that is no proxy's is the client's, all before it is the client's word.
        """
        client = _parse(peer)
        if peer not in self:
            return address_key(peer)
        hops = ",".join(forwarded_for).rsplit(",", MAX_FORWARDED_HOPS)[-MAX_FORWARDED_HOPS:]
        for hop in reversed(hops):
            address = _parse(_without_port(hop.strip()))
            if address is None:  # nothing that a proxy saw: the one behind it counts
                break
            client = address
            if self._any or not self._is_named(address):
                break
        return address_key(peer if client is None else str(client))

    def _is_named(self, address: _Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def address_key(address: str) -> str:
    """Returns an IPv4 address as it is, an IPv6 address as its /64, which is one subscriber's; else ''."""
    parsed = _parse(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(parsed), 64), strict=False))
    return "" if parsed is None else str(parsed)


def _parse(address: str) -> _Address | None:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    host, colon, _ = hop.partition(":")
    return host if colon and hop.count(":") == 1 else hop
