from __future__ import annotations

import hmac

import pytest
from manual_clock import ManualClock

from streaming.server import access
from streaming.server.access import Access, RateLimit

TOKEN = "correct-horse-battery"


def access_of(**changes):
    given = {"token": None, "origins": frozenset(), "loopback_only": True} | changes
    return Access(**given)


# Host -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8010", "LOCALHOST:8010", "127.0.0.1:8010", "127.0.0.2", "[::1]:8010", "[::1]"],
)
def test_this_machine_is_known_by_its_own_names(host):
    assert access_of().check_host(host) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8010",
        "127.0.0.1.evil.example",  # a name server may say 127.0.0.1 to it
        "127.evil.example",
        "localhost.evil.example",
        "localhost@evil.example",
        "192.168.1.5:8010",
        "0.0.0.0",
        "",
        "[",
        "[::1",
        "a b",
    ],
)
def test_a_foreign_host_is_refused_where_only_this_machine_listens(host):
    denial = access_of().check_host(host)
    assert denial is not None
    assert denial.status == 403
    assert denial.detail.startswith("Host: expected")


def test_a_server_for_others_takes_any_name():
    assert access_of(loopback_only=False).check_host("avatar.example") is None


def test_a_long_host_is_not_repeated_in_full():
    assert len(access_of().check_host("x" * 10_000).detail) < 200


# Origin -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "localhost:8010"),
        ("http://localhost:8010", "localhost:8010"),
        ("https://avatar.example", "avatar.example"),
        ("http://[::1]:8010", "[::1]:8010"),
    ],
)
def test_the_servers_own_pages_and_no_page_may_call(origin, host):
    assert access_of().check_origin(origin, host) is None


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.example", "localhost:8010"),
        ("http://localhost:8011", "localhost:8010"),
        ("http://localhost", "localhost:8010"),
        ("ftp://localhost:8010", "localhost:8010"),
        ("null", "localhost:8010"),
        ("null", ""),
        ("http://", ""),
        ("", "localhost:8010"),
        ("http://[", "localhost:8010"),
        ("http://localhost:8010/path", "localhost:8010"),
        ("http://localhost:8010@evil.example", "localhost:8010"),
        ("https://good.example.evil.example", "localhost:8010"),
    ],
)
def test_pages_of_other_sites_may_not_call(origin, host):
    allowed = access_of(origins=frozenset({"https://good.example"}))
    denial = allowed.check_origin(origin, host)
    assert denial is not None
    assert denial.status == 403
    assert "--allow-origin" in denial.detail


def test_pages_of_an_allowed_site_may_call():
    allowed = access_of(origins=frozenset({"https://good.example"}))
    assert allowed.check_origin("https://good.example", "localhost:8010") is None
    assert allowed.check_origin("http://good.example", "localhost:8010") is not None


# Token ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER  {TOKEN} "])
def test_who_knows_the_token_may_come_in(given):
    assert access_of(token=TOKEN).check_token(given) is None


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        "Bearer caf\xe9",
        f"Bearer{TOKEN}",
    ],
)
def test_who_does_not_know_the_token_may_not_come_in(given):
    denial = access_of(token=TOKEN).check_token(given)
    assert denial is not None
    assert denial.status == 401
    assert TOKEN not in denial.detail


def test_without_a_token_nobody_is_asked():
    assert access_of().check_token(None) is None


def test_tokens_are_compared_in_constant_time(monkeypatch):
    compared = []

    class Recorder:
        @staticmethod
        def compare_digest(given, known):
            compared.append((given, known))
            return hmac.compare_digest(given, known)

    monkeypatch.setattr(access, "hmac", Recorder)
    for given in (None, "Bearer wrong", f"Bearer {TOKEN}"):
        access_of(token=TOKEN).check_token(given)
    assert compared == [(given, TOKEN.encode()) for given in (b"", b"wrong", TOKEN.encode())]


# Offers -----------------------------------------------------------------------------------------------


def test_some_offers_at_once_then_a_steady_rate():
    clock = ManualClock(100.0)
    limit = RateLimit(burst=3, rate_per_s=0.5, clock=clock)
    assert [limit.take("a") for _ in range(3)] == [0, 0, 0]
    assert limit.take("a") == pytest.approx(2.0)
    clock.time_s += 1.0
    assert limit.take("a") == pytest.approx(1.0)
    clock.time_s += 1.0
    assert limit.take("a") == 0
    assert limit.take("a") == pytest.approx(2.0)


def test_an_offer_that_was_refused_does_not_count():
    clock = ManualClock(100.0)
    limit = RateLimit(burst=1, rate_per_s=1.0, clock=clock)
    assert limit.take("a") == 0
    assert all(limit.take("a") > 0 for _ in range(100))
    clock.time_s += 1.0
    assert limit.take("a") == 0


def test_a_long_wait_earns_no_more_offers_than_may_come_at_once():
    clock = ManualClock(100.0)
    limit = RateLimit(burst=2, rate_per_s=1.0, clock=clock)
    limit.take("a")
    clock.time_s += 1e6
    assert [limit.take("a") > 0 for _ in range(3)] == [False, False, True]


def test_each_address_has_offers_of_its_own():
    limit = RateLimit(burst=1, rate_per_s=1.0, clock=ManualClock(100.0))
    assert limit.take("a") == 0
    assert limit.take("b") == 0
    assert limit.take("a") > 0


def test_only_so_many_addresses_are_remembered(monkeypatch):
    monkeypatch.setattr(access, "_ADDRESSES_KEPT", 2)
    limit = RateLimit(burst=1, rate_per_s=1.0, clock=ManualClock(100.0))
    for address in ("a", "b", "a", "c"):  # `a` was seen after `b`: `b` is forgotten
        limit.take(address)
    assert limit.take("a") > 0
    assert limit.take("c") > 0
    assert limit.take("b") == 0
