"""Who may talk to the server: token, origin, host name, and how often."""

from __future__ import annotations

import hmac
from collections import OrderedDict
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..addresses import LOOPBACK_HOSTS, is_loopback
from ..pipeline.clock import MonotonicClock, SystemClock

OFFERS_AT_ONCE = 20
OFFERS_PER_S = 0.5
WRONG_TOKENS_AT_ONCE = 10
WRONG_TOKENS_PER_S = 0.1
_ADDRESSES_KEPT = 1024


@dataclass(frozen=True, kw_only=True)
class Denial:
    """Why a request is turned away, and by which HTTP status."""

    status: int
    detail: str


@dataclass(frozen=True, kw_only=True)
class Access:
    """What is asked of a request before anything is done for it."""

    token: str | None
    origins: frozenset[str]  # of other sites whose pages may call
    loopback_only: bool  # the server listens on this machine's own address

    def check_host(self, host: str) -> Denial | None:
        """Refuses a foreign `Host` on a server that only this machine reaches.

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
        """Refuses who does not know the token; takes the same time however much of it is right."""
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
    """A token bucket per client address: some at once, then at a steady rate."""

    def __init__(
        self,
        *,
        at_once: float = OFFERS_AT_ONCE,
        per_s: float = OFFERS_PER_S,
        clock: MonotonicClock | None = None,
    ) -> None:
        self._at_once, self._per_s = at_once, per_s
        self._clock = clock or SystemClock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # left, when

    def wait_s(self, address: str) -> float:
        """Returns the seconds to wait, 0 for none, and counts nothing."""
        return self._wait_s(self._left(address, self._clock.now_s()))

    def _left(self, address: str, now_s: float) -> float:
        left, since_s = self._buckets.get(address, (self._at_once, now_s))
        return min(self._at_once, left + (now_s - since_s) * self._per_s)

    def _wait_s(self, left: float) -> float:
        return 0.0 if left >= 1 else (1 - left) / self._per_s

    def take(self, address: str) -> float:
        """Returns 0 and counts one, or the seconds to wait."""
        now_s = self._clock.now_s()
        left = self._left(address, now_s)
        self._buckets.pop(address, None)
        wait_s = self._wait_s(left)
        self._buckets[address] = (left if wait_s else left - 1, now_s)
        if len(self._buckets) > _ADDRESSES_KEPT:
            self._buckets.popitem(last=False)
        return wait_s
