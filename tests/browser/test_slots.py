"""Places on a full server: who waits, and how soon a place that is left is free."""

from __future__ import annotations

import contextlib
import signal

import pytest
from chromium import processes_of
from patience import until
from playwright.sync_api import Error, expect


@pytest.fixture(scope="module")
def server(serve):
    return serve("Tiny", "--max-sessions", "1")


@pytest.fixture
def tab(open_page, server, microphones):
    server.until_sessions(0)
    tab = open_page(server.url, microphones.speech)
    tab.start()
    server.until_sessions(1)
    return tab


def test_a_visitor_who_finds_the_server_full_waits_and_gets_in(tab, open_page, server, microphones):
    late = open_page(server.url, microphones.speech)
    late.page.get_by_role("button", name="Start").click()
    alert = late.page.get_by_role("alert")
    expect(alert).to_contain_text("All places are taken")
    expect(alert).to_contain_text("full: 1 session, and no more are allowed here")
    expect(late.page.locator("#problem-countdown")).to_contain_text("Trying again in")
    tab.page.get_by_role("button", name="Stop").click()
    late.until_live()
    expect(alert).to_be_hidden()
    assert server.sessions() == 1


def test_a_visitor_of_a_full_server_can_stop_waiting(tab, open_page, server, microphones):
    late = open_page(server.url, microphones.speech)
    late.page.get_by_role("button", name="Start").click()
    late.page.get_by_role("button", name="Do not wait").click()
    expect(late.page.get_by_role("alert")).to_be_hidden()
    expect(late.page.get_by_role("button", name="Start")).to_be_enabled()
    assert late.avatar("avatar.state") == "failed"


def test_the_element_of_a_full_server_says_when_to_come_again(tab, open_page, server, microphones):
    late = open_page(server.url, microphones.speech)
    told = late.avatar("avatar.connect().catch(({ code, retryAfterS }) => ({ code, retryAfterS }))")
    assert told == {"code": "server-full", "retryAfterS": 10}


def test_a_reload_frees_the_place_for_itself(tab, server):
    refused = server.metric("geneface_offers_refused_total")
    tab.page.reload()
    tab.page.get_by_role("button", name="Start").click()
    tab.until_live()
    assert server.sessions() == 1
    assert server.metric("geneface_offers_refused_total") == refused


def test_going_to_another_page_frees_the_place_and_going_back_can_take_it(tab, server):
    tab.page.goto("about:blank")
    server.until_sessions(0)
    tab.page.go_back()
    tab.start()


def test_a_closed_tab_frees_the_place(tab, server):
    tab.page.close()
    server.until_sessions(0)


def test_a_tab_closed_while_it_connects_frees_the_place(open_page, server, microphones):
    server.until_sessions(0)
    tab = open_page(server.url, microphones.speech)
    tab.page.get_by_role("button", name="Start").click()
    tab.wait_until(lambda: server.sessions() == 1)
    tab.page.close()
    server.until_sessions(0)


def test_an_element_that_is_taken_out_hangs_up(tab, server):
    tab.avatar("avatar.remove()")
    server.until_sessions(0)


@pytest.mark.parametrize("how", ["closed", "crashed", "killed", "frozen"])
def test_a_browser_that_goes_away_frees_the_place(browsers, server, microphones, tmp_path, how):
    server.until_sessions(0)
    profile = tmp_path / "profile"
    context = browsers.own(profile, *microphones.speech)
    try:
        page = context.pages[0]
        page.goto(server.url)
        page.get_by_role("button", name="Start").click()
        expect(page.locator("#state")).to_have_text("Live")
        processes = processes_of(profile)
        if how == "closed":
            context.close()
        elif how == "crashed":
            with pytest.raises(Error, match="crash"):
                page.goto("chrome://crash")
        else:
            for process in processes:
                process.send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        server.until_sessions(0)
    finally:
        if how == "frozen":
            for process in processes:
                process.send_signal(signal.SIGCONT)
        with contextlib.suppress(Error):  # it has gone already
            context.close()
    until(lambda: not any(process.is_running() for process in processes))
