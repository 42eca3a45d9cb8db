"""A real Chromium that offers more sections than are wanted: it takes the answer, and the call goes on."""

from __future__ import annotations

import pytest

CALL = """async ({policy, sections}) => {
    const connection = new RTCPeerConnection({bundlePolicy: policy});
    try {
        const microphone = (await navigator.mediaDevices.getUserMedia({audio: true})).getAudioTracks()[0];
        let spoken = false;
        for (const [kind, direction] of sections) {
            if (kind === 'data') {
                connection.createDataChannel('x');
            } else if (kind === 'audio' && direction === 'sendrecv' && !spoken) {
                spoken = true;
                connection.addTransceiver(microphone, {direction});
            } else {
                connection.addTransceiver(kind, {direction});
            }
        }
        const until = async (check, what) => {
            for (let tries = 0; !(await check()); tries += 1) {
                if (tries > 300) throw new Error(`not in time: ${what}`);
                await new Promise((resolve) => setTimeout(resolve, 50));
            }
        };
        await connection.setLocalDescription();
        await until(() => connection.iceGatheringState === 'complete', 'candidates');
        const response = await fetch('/offer', {
            method: 'POST',
            headers: {'content-type': 'application/json'},
            body: JSON.stringify({sdp: connection.localDescription.sdp, type: 'offer'}),
        });
        const answer = await response.json();
        if (!response.ok) throw new Error(JSON.stringify(answer));
        await connection.setRemoteDescription({type: 'answer', sdp: answer.sdp});
        await until(() => connection.connectionState === 'connected', 'a connection');
        const received = async (kind) => {
            let found = 0;
            for (const report of (await connection.getStats()).values()) {
                if (report.type === 'inbound-rtp' && report.kind === kind) {
                    found += kind === 'video' ? report.framesDecoded : report.packetsReceived;
                }
            }
            return found;
        };
        await until(async () => (await received('video')) > 5, 'pictures');
        if (spoken) await until(async () => (await received('audio')) > 10, 'sound');
        const media = (sdp) => sdp.split('\\r\\n').filter((line) => line.startsWith('m='));
        return {
            offered: media(connection.localDescription.sdp).map((line) => line.split(' ')[0]),
            answered: media(answer.sdp).map((line) => line.split(' ').slice(0, 2)),
            directions: connection.getTransceivers().map((t) => t.currentDirection),
        };
    } finally {
        connection.close();
    }
}"""
# What is offered, and which of it is accepted.
SHAPES = {
    "video twice": (
        [("audio", "sendrecv"), ("video", "recvonly"), ("video", "recvonly")],
        [True, True, False],
    ),
    "a camera first": (
        [("video", "sendonly"), ("audio", "sendrecv"), ("video", "recvonly")],
        [False, True, True],
    ),
    "inactive ones between": (
        [
            ("audio", "sendrecv"),
            ("video", "inactive"),
            ("audio", "inactive"),
            ("video", "recvonly"),
            ("data", ""),
        ],
        [True, False, False, True, True],
    ),
    "inactive sound after the pictures": ([("video", "recvonly"), ("audio", "inactive")], [True, False]),
    "inactive sound whose transport all use": ([("audio", "inactive"), ("video", "recvonly")], [True, True]),
}


@pytest.fixture(scope="module")
def server(serve):
    return serve("Tiny")


@pytest.mark.parametrize("policy", ["balanced", "max-bundle"])
@pytest.mark.parametrize("shape", SHAPES)
def test_sections_that_are_not_wanted_are_rejected(open_page, server, microphones, shape, policy):
    sections, accepted = SHAPES[shape]
    page = open_page(server.url, microphones.speech).page
    found = page.evaluate(CALL, {"policy": policy, "sections": sections})
    assert [kind for kind, _ in found["answered"]] == found["offered"]
    # Chromium puts data last, as it was added.
    assert [port != "0" for _, port in found["answered"]] == accepted
    media = [(kind, direction) for kind, direction in sections if kind != "data"]
    for (kind, direction), is_accepted, current in zip(media, accepted, found["directions"], strict=False):
        active = is_accepted and direction != "inactive"
        assert (current not in (None, "inactive", "stopped")) == active, (kind, direction, current)
