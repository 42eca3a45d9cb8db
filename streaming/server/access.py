"""Access control of the HTTP API: bearer token, origin, Host header, rate limit."""

from __future__ import annotations

import hmac
from collections import OrderedDict
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..addresses import LOOPBACK_HOSTS, is_loopback
from ..pipeline.clock import MonotonicClock, SystemClock

OFFERS_BURST = 20
OFFERS_PER_S = 0.5
WRONG_TOKENS_BURST = 10
WRONG_TOKENS_PER_S = 0.1
_ADDRESSES_KEPT = 1024


@dataclass(frozen=True, kw_only=True)
class Denial:
    """Why a request is refused, and its HTTP status."""

    status: int
    detail: str


@dataclass(frozen=True, kw_only=True)
class Access:
    """The checks of a request before any work is done for it."""

    token: str | None
    origins: frozenset[str]  # of other sites whose pages may call
    loopback_only: bool  # the server listens on this machine's own address

    def check_host(self, host: str) -> Denial | None:
        """Refuses a foreign `Host` on a loopback server (DNS rebinding).

        A page of any site could otherwise point a name of its own at 127.0.0.1 and pass as the same origin.
        """
        if not self.loopback_only or is_loopback(_host_name(host)):
            return None
        return Denial(status=403, detail=f"Host: expected {' or '.join(LOOPBACK_HOSTS)}, got {host[:80]}")

    def check_origin(self, origin: str | None, host: str) -> Denial | None:
        """Refuses pages of other sites. No `Origin`: no page, or one of ours."""
        if origin is None or origin in self.origins:
            return None
        if host and origin in (f"http://{host}", f"https://{host}"):
            return None
        return Denial(
            status=403,
            detail=f"Origin: expected this server's own or one of --allow-origin, got {origin[:80]}",
        )

    def check_token(self, authorization: str | None) -> Denial | None:
        """Refuses a wrong bearer token, in constant time."""
        if self.token is None:
            return None
        scheme, _, given = (authorization or "").partition(" ")
        known = hmac.compare_digest(given.strip().encode(), self.token.encode())
        if scheme.lower() == "bearer" and known:
            return None
        return Denial(status=401, detail="Authorization: expected `Bearer` and the server's --token")


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class RateLimit:
    """A token bucket per client address: a burst, then a steady rate."""

    def __init__(
        self,
        *,
        burst: float = OFFERS_BURST,
        rate_per_s: float = OFFERS_PER_S,
        clock: MonotonicClock | None = None,
    ) -> None:
        self._burst, self._rate_per_s = burst, rate_per_s
        self._clock = clock or SystemClock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens left, when

    def wait_s(self, address: str) -> float:
        """Returns the seconds until the next token, 0 where there is one; takes none."""
        return self._wait_s(self._left(address, self._clock.now_s()))

    def _left(self, address: str, now_s: float) -> float:
        left, since_s = self._buckets.get(address, (self._burst, now_s))
        return min(self._burst, left + (now_s - since_s) * self._rate_per_s)

    def _wait_s(self, left: float) -> float:
        return 0.0 if left >= 1 else (1 - left) / self._rate_per_s

    def take(self, address: str) -> float:
        """Returns 0 and takes a token, or the seconds until the next."""
        now_s = self._clock.now_s()
        left = self._left(address, now_s)
        self._buckets.pop(address, None)
        wait_s = self._wait_s(left)
        self._buckets[address] = (left if wait_s else left - 1, now_s)
        if len(self._buckets) > _ADDRESSES_KEPT:
            self._buckets.popitem(last=False)
        return wait_s
