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
            directions: Object.fromEntries(
                connection.getTransceivers().map((each) => [each.mid, each.currentDirection])
            ),
        };
    } finally {
        connection.close();
    }
}"""
BOTH, TAKE, GIVE, NONE = "sendrecv", "recvonly", "sendonly", "inactive"
# What is offered, and what becomes of each: the direction, None where it is rejected.
SHAPES = {
    "video twice": [("audio", BOTH, BOTH), ("video", TAKE, TAKE), ("video", TAKE, None)],
    "a camera first": [("video", GIVE, NONE), ("audio", BOTH, BOTH), ("video", TAKE, TAKE)],
    "a camera last": [("audio", BOTH, BOTH), ("video", TAKE, TAKE), ("video", GIVE, None)],
    "inactive ones between, and data": [
        ("audio", BOTH, BOTH),
        ("video", NONE, None),
        ("audio", NONE, None),
        ("video", TAKE, TAKE),
        ("data", "", ""),
    ],
    "inactive sound after the pictures": [("video", TAKE, TAKE), ("audio", NONE, None)],
    "inactive sound first": [("audio", NONE, NONE), ("video", TAKE, TAKE)],
}


@pytest.fixture(scope="module")
def server(serve):
    return serve("Tiny")


@pytest.mark.parametrize("policy", ["balanced", "max-bundle"])
@pytest.mark.parametrize("shape", SHAPES)
def test_sections_that_are_not_wanted_are_rejected(open_page, server, microphones, shape, policy):
    page = open_page(server.url, microphones.speech).page
    sections = [[kind, direction] for kind, direction, _ in SHAPES[shape]]
    found = page.evaluate(CALL, {"policy": policy, "sections": sections})
    assert [kind for kind, _ in found["answered"]] == found["offered"]
    ends = [end for _, _, end in SHAPES[shape]]
    assert [port != "0" for _, port in found["answered"]] == [end is not None for end in ends]
    # Chromium counts mids, and forgets a transceiver that was rejected.
    expected = {str(number): end for number, end in enumerate(ends) if end}
    assert found["directions"] == expected
