"""What the server is told, refused in one line before anything slow; and what it says when it is ready."""

from __future__ import annotations

import contextlib
import re
import socket
import types

import pytest
import refusals

from streaming import cli
from streaming.addresses import is_loopback
from streaming.errors import InputError, Stopped
from streaming.pipeline.loaded_speaker import LoadedSpeaker
from streaming.server import server
from streaming.server.tls import server_ssl_context
from streaming.session.admission import Admission
from streaming.settings import StreamSettings, options, resolve_settings, variable
from streaming.webrtc import opus

TOKEN = "correct-horse-battery"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in options():
        monkeypatch.delenv(variable(name), raising=False)


@pytest.fixture
def never_opened(monkeypatch):
    """No speaker may be opened: what is refused is refused before."""

    def opened(*_, **__):
        pytest.fail("the speaker was opened before the settings were checked")

    monkeypatch.setattr(LoadedSpeaker, "open", opened)


def refused(capsys, *flags):
    assert cli.main(flags) == cli.BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("geneface-stream: ")
    return captured.err


# Refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        "--port 70000",
        "--port http",
        "--allow-origin example.org",
        "--allow-origin *",
        "--allow-origin https://example.org/page",
        "--allow-origin https://example.org?x",
        "--allow-origin https://example.org#x",
        "--allow-origin https://me@example.org",
        "--allow-origin https://example.org:http",
        "--allow-origin http://[",
        "--allow-origin https://good.example --allow-origin ftp://x",
        "--udp-port-range 40000",
        "--udp-port-range 40100-40000",
        "--udp-port-range 1-100",
        "--udp-port-range 60000-70000",
        "--codec av1",
        "--bitrate-kbps 5",
        "--max-sessions -1",
    ],
)
def test_a_bad_value_is_one_line_with_its_flag_and_exit_code_2(never_opened, capsys, given):
    flags = given.split()
    said = refusals.parts(refused(capsys, "--port", "0", *flags))
    assert said.where.partition(" (or ")[0] == f"geneface-stream: {flags[-2]}"
    assert said.got.strip("'") == flags[-1]


@pytest.mark.parametrize(
    ("flag", "value", "got"),
    [
        ("--host", "", "nothing"),
        ("--token", "short", "5"),
        ("--token", "correct horse battery", "others"),
        ("--token", "caf\xe9-au-lait-for-two", "others"),
        ("--ice-server", "stun.example.org", "neither"),
        ("--ice-server", "http://example.org", "neither"),
        ("--ice-server", "turn:turn.example.org", "turn: and something else"),
        ("--tls-cert", "cert.pem", "one"),
        ("--tls-key", "key.pem", "one"),
    ],
)
def test_a_bad_value_that_may_be_secret_is_refused_without_it(never_opened, capsys, flag, value, got):
    said = refusals.parts(refused(capsys, "--port", "0", flag, value))
    assert flag in said.where
    assert said.got == got
    assert said.way_out or flag == "--ice-server"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--host 0.0.0.0", "--token --allow-anonymous"),
        ("--host ::", "--token --allow-anonymous"),
        ("--host 127.evil.example", "--token --allow-anonymous"),
        ("--host 0.0.0.0 --allow-anonymous", "--tls-cert --tls-key --tls-self-signed"),
        (f"--host 0.0.0.0 --token {TOKEN}", "--tls-cert --tls-key --tls-self-signed"),
        (f"--host 203.0.113.1 --token {TOKEN} --tls-self-signed", "127.0.0.1 0.0.0.0"),
        ("--tls-cert no.pem --tls-key no.pem", "no.pem --tls-self-signed"),
    ],
)
def test_flags_that_do_not_go_together_are_refused_with_those_that_would_do(
    never_opened, capsys, flags, named
):
    where, _, said = refused(capsys, "--port", "0", *flags.split()).partition(": ")[2].partition(": ")
    assert where in (" ".join(flags.split()[:2]), flags.split()[0])
    assert [name for name in named.split() if name not in said] == []


def test_a_password_of_an_ice_server_is_not_repeated(never_opened, capsys):
    assert "hunter2" not in refused(capsys, "--port", "0", "--ice-server", "turn:me:hunter2@")


def test_a_port_in_use_is_said_before_the_slow_part(never_opened, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(capsys, "--port", str(port))
    assert line.startswith(f"geneface-stream: --port {port}: ")
    assert "address already in use" in line


def test_a_start_without_libopus_is_one_line(never_opened, monkeypatch, capsys):
    monkeypatch.setattr(opus, "_libopus_paths", list)
    monkeypatch.setattr(server, "load_libopus", opus.load_libopus.__wrapped__)
    assert "apt-get install libopus0" in refused(capsys, "--port", "0")


def test_two_servers_that_are_getting_ready_do_not_share_a_port():
    with server._listen(StreamSettings(port=0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(InputError, match="address already in use"):
            server._listen(StreamSettings(port=port))


def test_a_port_is_free_again_at_once():
    with server._listen(StreamSettings(port=0)) as first:
        port = first.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), contextlib.suppress(BlockingIOError):
            first.accept()[0].close()  # leaves the connection in TIME_WAIT
    server._listen(StreamSettings(port=port)).close()


def test_an_unknown_speaker_is_one_line(capsys):
    assert 'got "Nobody"' in refused(capsys, "--port", "0", "--speaker", "Nobody")


# Taken ------------------------------------------------------------------------------------------------


def test_origins_are_taken_as_browsers_write_them():
    given = "HTTPS://Example.org/, http://b\xfccher.example:80 ,https://[::1]:8443,https://x.example:443"
    assert resolve_settings({"allow_origin": given}, {}).allow_origin == (
        "https://example.org",
        "http://xn--bcher-kva.example",
        "https://[::1]:8443",
        "https://x.example",
    )


def test_several_origins_come_by_variable_or_by_flags(monkeypatch):
    sites = ("https://a.example", "https://b.example")
    assert resolve_settings({}, {"GENEFACE_ALLOW_ORIGIN": ",".join(sites)}).allow_origin == sites
    served = []
    monkeypatch.setattr(server, "serve", lambda settings, **_: served.append(settings))
    assert cli.main(["--allow-origin", sites[0], "--allow-origin", sites[1]]) == cli.DONE
    monkeypatch.setenv("GENEFACE_ALLOW_ORIGIN", "https://c.example")
    assert cli.main(["--allow-origin", sites[0]]) == cli.DONE
    assert [settings.allow_origin for settings in served] == [sites, sites[:1]]


def test_a_port_range_and_ice_servers():
    settings = resolve_settings(
        {"udp_port_range": "40000-40100", "ice_server": "stun:a.example,turn:me:pw@b.example"}, {}
    )
    assert settings.udp_port_range == (40000, 40100)
    assert settings.ice_server == ("stun:a.example", "turn:me:pw@b.example")


def test_a_server_for_others_takes_token_and_tls():
    settings = StreamSettings(host="0.0.0.0", token=TOKEN, tls_self_signed=True)
    assert settings.listens_beyond_this_machine
    assert StreamSettings(host="0.0.0.0", allow_anonymous=True, tls_self_signed=True).token is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "LOCALHOST", "::1"])
def test_a_server_for_this_machine_alone_needs_neither_token_nor_tls(host):
    assert is_loopback(host)
    assert not StreamSettings(host=host).listens_beyond_this_machine


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.5", "127.evil.example", "localhost.example", ""]
)
def test_an_address_that_is_not_loopback_is_reached_by_others(host):
    assert not is_loopback(host)


# Said -------------------------------------------------------------------------------------------------


class StandInHost:
    name = "Tiny"
    device = "CPU, 2 threads"
    start_px = 256
    sizes_px = (256, 128)
    speaker = types.SimpleNamespace(plates=None)

    def core_ms(self, size_px):
        return 7.1

    def make_renderer(self, size_px):
        return size_px


@pytest.fixture
def greeting(monkeypatch):
    """Returns what a server with these settings says when it is ready."""
    monkeypatch.setattr(server, "describe", lambda renderer, _: f"{renderer} px")

    def of(tls=False, devices="", **settings):
        context = server_ssl_context(None, None, True, "localhost") if tls else None
        host = StandInHost()
        host.networks = types.SimpleNamespace(describe=lambda: devices)
        return server._greeting(StreamSettings(**settings), host, 8010, context)

    return of


def test_the_greeting_says_who_draws_and_where_to_look(greeting):
    assert greeting() == [
        "Tiny on CPU, 2 threads, 256 px; its bundle has no plates",
        "Open http://127.0.0.1:8010/ in a browser and speak. Ctrl+C ends the server.",
    ]


@pytest.mark.parametrize(
    ("share", "said"), [(2, "Counts on 2 cores: 68"), (1, "Counts on 1 core: 34"), (0.5, "0.5 cores: 17")]
)
def test_the_start_says_how_many_cores_are_counted_on_and_what_a_session_takes(share, said):
    line = server.counts_on(share, Admission(cores=share), StandInHost())
    assert said in line
    assert "7.1 at 128 px" in line


def test_the_greeting_says_which_networks_have_a_device_of_their_own(greeting):
    line = greeting(devices="features and motion on A GPU, condition on CPU")[0]
    assert line.startswith("Tiny on CPU, 2 threads, 256 px; ")
    assert line.endswith("; features and motion on A GPU, condition on CPU")


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({"host": "::1"}, "http://[::1]:8010/ "),
        ({"token": TOKEN}, "http://127.0.0.1:8010/#token=correct-horse-battery "),
        (
            {"token": "a+b/c=d&e#f%a+b/c=d&"},
            "http://127.0.0.1:8010/#token=a%2Bb%2Fc%3Dd%26e%23f%25a%2Bb%2Fc%3Dd%26 ",
        ),
        (
            {"host": "0.0.0.0", "token": TOKEN, "tls_self_signed": True, "tls": True},
            "https://localhost:8010/#token=correct-horse-battery ",
        ),
    ],
)
def test_the_greeting_shows_an_address_that_can_be_opened(greeting, settings, address, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert address in greeting(**settings)[1]


def test_the_token_is_shown_on_a_terminal_only(greeting, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    lines = greeting(token=TOKEN)
    assert not any(TOKEN in line for line in lines)
    assert "#token=TOKEN" in lines[-1]


@pytest.mark.parametrize("given", ["proxy", "10.0.0.1/8", "10.0.0.0/33", "127.0.0.1,x"])
def test_what_is_no_address_of_a_proxy_is_refused(given):
    with pytest.raises(InputError, match="--forwarded-allow-ips: expected addresses"):
        resolve_settings({"forwarded_allow_ips": given}, {})


def test_a_certificate_of_its_own_is_announced(greeting):
    lines = greeting(tls=True, tls_self_signed=True)
    assert "the browser will warn once" in lines[-2]
    assert re.fullmatch(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", lines[-1])


def test_a_signal_that_was_swallowed_while_the_speaker_opened_still_ends_the_server(monkeypatch):
    monkeypatch.setattr(LoadedSpeaker, "open", lambda *_, **__: StandInHost())
    said = []
    with pytest.raises(Stopped):
        server.serve(StreamSettings(port=0), say=said.append, stopped=lambda: True)
    assert said == []


def test_a_gpu_is_given_back_where_the_server_does_not_come_up(monkeypatch):
    gpu, asked = types.SimpleNamespace(lost="", closed=0), []

    def close():
        gpu.closed += 1

    def open_gpu(device, **_):
        asked.append(device)
        return gpu

    def refuse(*_, **given):
        assert given["gpu"] is gpu
        raise InputError("Tiny: too large")

    gpu.close = close
    monkeypatch.setattr(server, "open_gpu", open_gpu)
    monkeypatch.setattr(LoadedSpeaker, "open", refuse)
    with pytest.raises(InputError, match="too large"):
        server.serve(StreamSettings(port=0, device="cuda"), say=print, stopped=lambda: False)
    assert (asked, gpu.closed) == (["cuda"], 1)


def test_a_server_that_was_stopped_has_ended_in_order(monkeypatch, capsys):
    def stopped(*_, **__):
        raise Stopped

    monkeypatch.setattr(server, "serve", stopped)
    assert cli.main([]) == cli.DONE
    assert capsys.readouterr().err == "geneface-stream: ended\n"
