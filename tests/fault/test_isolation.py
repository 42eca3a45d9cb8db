"""Two sessions of one server share nothing: each hears and sees its own; neither notices the other's end."""

from __future__ import annotations

import dataclasses

import bundle_factory
import numpy as np
import pytest
from aiortc_client import RATE_HZ, LiveClient
from on_loop import on_loop, until
from quick_server import QuickServer

from export.bundle.writer import write_bundle

TONES_HZ = {"Tiny": 440.0, "Other": 1250.0}
PLATES = {"Tiny": (200, 60, 60), "Other": (60, 60, 200)}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speakers")
    for seed, (name, colour) in enumerate(PLATES.items()):
        parts = bundle_factory.tiny_parts(name=name, seed=seed, image_size_px=128)
        plate = np.broadcast_to(np.uint8(colour), parts.scene.background.shape).copy()
        write_bundle(
            folder / name,
            dataclasses.replace(parts, scene=dataclasses.replace(parts.scene, background=plate)),
        )
    with QuickServer(tmp_path_factory.mktemp("server") / "log.txt", folder) as running:
        yield running
    assert "Traceback" not in running.log()


def loudness(samples, tone_hz):
    """Returns the amplitude of a tone in (n,) samples, 0 to 1."""
    at = np.arange(len(samples)) / RATE_HZ
    window = np.hanning(len(samples))
    return 2 * abs(np.sum(samples * window * np.exp(-2j * np.pi * tone_hz * at))) / window.sum()


async def hears_only(client, speaker):
    """Waits for half a second of its own tone alone: what is made up for late packets is of no one pitch."""
    own, others = TONES_HZ[speaker], [tone for name, tone in TONES_HZ.items() if name != speaker]

    def is_alone():
        sound = client.peer.heard(0.5)
        alone = loudness(sound, own) > 0.1 and all(loudness(sound, tone) < 0.01 for tone in others)
        return len(sound) == 0.5 * RATE_HZ and alone

    await until(is_alone, what=f"{speaker}'s tone alone")


def sees_only(client, speaker):
    colours = np.array([picture.mean(axis=(0, 1)) for picture in client.peer.pictures])
    assert len(colours) > 5
    assert (
        np.abs(colours - np.array(PLATES[speaker])).max() < 12
    )  # what I420 and the encoder leave of a colour
    return True


@on_loop
async def test_each_session_hears_and_sees_only_its_own_speaker(server):
    async with LiveClient(server.url, speaker="Tiny", tone_hz=TONES_HZ["Tiny"]) as tiny:
        async with LiveClient(server.url, speaker="Other", tone_hz=TONES_HZ["Other"]) as other:
            clients = {"Tiny": tiny, "Other": other}
            for client in clients.values():
                await client.goes_on(frames=20)
            for speaker, client in clients.items():
                await hears_only(client, speaker)
                assert sees_only(client, speaker)

            assert tiny.session_id != other.session_id
            for speaker, client in clients.items():
                [hello] = client.of("hello")
                assert (hello["session_id"], hello["speaker"]) == (client.session_id, speaker)
            # Telemetry is of its own frames: their timestamps begin at random.
            stamps = [{f["rtp"] for m in c.of("telemetry") for f in m["frames"]} for c in clients.values()]
            assert all(stamps)
            assert not stamps[0] & stamps[1]

        # The other one has gone.
        assert tiny.of("ended") == []
        tiny.peer.sounds.clear()
        await tiny.goes_on(frames=15)
        await hears_only(tiny, "Tiny")
        assert sees_only(tiny, "Tiny")


@on_loop
async def test_a_session_can_neither_end_nor_watch_another(server):
    async with LiveClient(server.url) as first, LiveClient(server.url) as second:
        await first.goes_on()
        await first.say({"type": "end", "session_id": second.session_id})
        await until(lambda: first.closed)
        assert first.of("ended")
        await second.goes_on()
        assert second.of("ended") == []
        assert second.session_id not in str(first.told)


@on_loop
async def test_metrics_and_log_name_no_session_in_full(server):
    async with LiveClient(server.url) as client:
        await client.goes_on()
        await until(lambda: server.metric("render_size_pixels") > 0)
        assert client.session_id not in server.log()
        assert client.session_id[:6] in server.log()
    await until(lambda: server.metric("render_size_pixels") == 0, what="nothing said of who has gone")
