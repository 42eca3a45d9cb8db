"""Whose word on a client's address counts, and what an address counts as."""

from __future__ import annotations

import pytest

from streaming.addresses import TrustedProxies, address_key

CLIENT = "203.0.113.9"


@pytest.mark.parametrize(
    ("names", "peer", "forwarded", "key"),
    [
        ((), "192.0.2.1", [CLIENT], "192.0.2.1"),
        (("192.0.2.1",), "192.0.2.1", [CLIENT], CLIENT),
        (("192.0.2.0/24",), "192.0.2.1", [f"1.2.3.4, {CLIENT}, 192.0.2.7"], CLIENT),
        (("192.0.2.1",), "192.0.2.1", ["1.2.3.4", CLIENT], CLIENT),
        (("192.0.2.1",), "192.0.2.1", ["any text at all"], "192.0.2.1"),
        (("192.0.2.1",), "192.0.2.1", [], "192.0.2.1"),
        (("192.0.2.1",), "192.0.2.1", [f"{CLIENT}:4711"], CLIENT),
        (("192.0.2.1",), "192.0.2.1", ["[2001:db8::1]:4711"], "2001:db8::/64"),
        (("*",), "198.51.100.3", [f"1.2.3.4, {CLIENT}"], CLIENT),
        (("::1",), "::1", [CLIENT], CLIENT),
        (("192.0.2.1",), "::ffff:192.0.2.1", [CLIENT], CLIENT),
    ],
)
def test_the_client_is_the_last_that_is_no_proxy(names, peer, forwarded, key):
    assert TrustedProxies(names).client_key(peer, forwarded) == key


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("testclient", ""),
        ("", ""),
    ],
)
def test_an_address_is_never_any_text(address, key):
    assert address_key(address) == key
