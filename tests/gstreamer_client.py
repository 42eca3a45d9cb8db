"""A call by GStreamer's webrtcbin: `/usr/bin/python3 gstreamer_client.py WHIP_URL CODEC BUNDLE_POLICY [vad]`.

Speaks a tone, decodes what comes back, and ends when it has seen and heard enough, or after `MAX_S`. The
last line is JSON: `states`, `pictures`, `loudest_db`, `status` of the answer. With `check` for a URL it only
says which elements are missing. Runs in the Python of the system, where the bindings of GStreamer are, and
imports nothing of ours.
"""

from __future__ import annotations

import json
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request

MAX_S = 150
ENOUGH_PICTURES, ENOUGH_DB = 25, -40.0
DECODERS = {"VP8": ("rtpvp8depay", "vp8dec"), "H264": ("rtph264depay", "h264parse", "openh264dec")}
ELEMENTS = [
    "webrtcbin",
    "nicesrc",
    "dtlsenc",
    "srtpenc",
    "opusenc",
    "opusdec",
    "rtpopuspay",
    "rtpopusdepay",
    "audiotestsrc",
    "audioconvert",
    "level",
    "rtpvp8depay",
    "vp8dec",
    "rtph264depay",
    "h264parse",
    "openh264dec",
]
LEVEL_URI = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"


def load():
    """Returns GStreamer's modules, started."""
    import gi

    for name in ("Gst", "GstWebRTC", "GstSdp"):
        gi.require_version(name, "1.0")
    from gi.repository import GLib, Gst, GstSdp, GstWebRTC

    Gst.init(None)
    return GLib, Gst, GstSdp, GstWebRTC


class Call:
    """One call."""

    def __init__(self, url, codec, policy, *, vad):
        self.url, self.codec = url, codec
        self.glib, self.gst, self.gst_sdp, self.gst_webrtc = load()
        self.loop = self.glib.MainLoop()
        self.result = {"states": [], "pictures": 0, "loudest_db": -200.0, "status": 0, "errors": []}
        self.location = None
        self.asked = False
        self.pipeline = self.gst.parse_launch(
            f"webrtcbin name=peer bundle-policy={policy} latency=60 "
            "audiotestsrc is-live=true freq=440 volume=0.5 ! audioconvert ! audioresample ! opusenc "
            "! rtpopuspay pt=111 ! capsfilter name=sent ! peer."
        )
        sent = "application/x-rtp,media=audio,encoding-name=OPUS,payload=111"
        sent += f',extmap-1=(string)<"","{LEVEL_URI}","vad=on">' if vad else ""
        self.pipeline.get_by_name("sent").set_property("caps", self.gst.Caps.from_string(sent))
        self.peer = self.pipeline.get_by_name("peer")
        self.peer.connect("pad-added", self._take)
        self.peer.connect("on-negotiation-needed", self._offer)
        self.peer.connect("notify::ice-gathering-state", self._gathered)
        self.peer.connect("notify::connection-state", self._changed)
        wanted = f"application/x-rtp,media=video,encoding-name={codec},payload=96,clock-rate=90000"
        if codec == "H264":
            wanted += ",packetization-mode=(string)1,profile-level-id=(string)42e01f"
        self.peer.emit(
            "add-transceiver",
            self.gst_webrtc.WebRTCRTPTransceiverDirection.RECVONLY,
            self.gst.Caps.from_string(wanted),
        )
        bus = self.pipeline.get_bus()
        bus.add_signal_watch()
        bus.connect("message::error", self._failed)
        bus.connect("message::element", self._heard)

    def run(self):
        """Returns the result, when the call is over."""
        self.pipeline.set_state(self.gst.State.PLAYING)
        self.glib.timeout_add_seconds(MAX_S, self.loop.quit)
        self.loop.run()
        if self.location:
            request = urllib.request.Request(self.location, method="DELETE")
            urllib.request.urlopen(request, timeout=MAX_S).close()
        self.pipeline.set_state(self.gst.State.NULL)
        return self.result

    def _offer(self, _):
        def made(promise, *_):
            reply = promise.get_reply()  # the offer lives as long as it does
            offer = reply.get_value("offer")
            self.peer.emit("set-local-description", offer, self.gst.Promise.new())

        self.peer.emit("create-offer", None, self.gst.Promise.new_with_change_func(made))

    def _gathered(self, *_):
        complete = self.gst_webrtc.WebRTCICEGatheringState.COMPLETE
        if self.peer.get_property("ice-gathering-state") == complete and not self.asked:
            self.asked = True
            threading.Thread(target=self._ask, daemon=True).start()

    def _ask(self):
        offer = self.peer.get_property("local-description").sdp.as_text()
        request = urllib.request.Request(self.url, offer.encode(), {"Content-Type": "application/sdp"})
        try:
            with urllib.request.urlopen(request, timeout=MAX_S) as response:
                self.result["status"] = response.status
                self.location = urllib.parse.urljoin(self.url, response.headers["Location"])
                text = response.read().decode()
        except urllib.error.HTTPError as error:
            self.result["status"] = error.code
            self.result["errors"].append(error.read().decode())
            self.loop.quit()
            return
        _, message = self.gst_sdp.SDPMessage.new_from_text(text)
        answer = self.gst_webrtc.WebRTCSessionDescription.new(self.gst_webrtc.WebRTCSDPType.ANSWER, message)
        self.peer.emit("set-remote-description", answer, self.gst.Promise.new())

    def _take(self, _, pad):
        if pad.direction != self.gst.PadDirection.SRC:
            return
        if "media=(string)video" in pad.get_current_caps().to_string():
            branch = " ! ".join(
                (*DECODERS[self.codec], "fakesink name=shown sync=false signal-handoffs=true")
            )
            bin_ = self.gst.parse_bin_from_description(branch, True)
            bin_.get_by_name("shown").connect("handoff", self._saw)
        else:
            branch = "rtpopusdepay ! opusdec ! audioconvert ! level interval=200000000 ! fakesink sync=false"
            bin_ = self.gst.parse_bin_from_description(branch, True)
        self.pipeline.add(bin_)
        bin_.sync_state_with_parent()
        pad.link(bin_.get_static_pad("sink"))

    def _saw(self, *_):
        self.result["pictures"] += 1
        self.glib.idle_add(self._see_whether_enough)

    def _heard(self, _, message):
        structure = message.get_structure()
        if structure is not None and structure.get_name() == "level":
            self.result["loudest_db"] = max(self.result["loudest_db"], *structure.get_value("rms"))
            self._see_whether_enough()

    def _see_whether_enough(self):
        if self.result["pictures"] >= ENOUGH_PICTURES and self.result["loudest_db"] > ENOUGH_DB:
            self.loop.quit()
        return False

    def _changed(self, *_):
        self.result["states"].append(self.peer.get_property("connection-state").value_nick)

    def _failed(self, _, message):
        self.result["errors"].append(str(message.parse_error()))
        self.loop.quit()


def missing():
    """Returns the names of elements that are not installed."""
    _, gst, *_ = load()
    return [name for name in ELEMENTS if gst.ElementFactory.find(name) is None]


if __name__ == "__main__":
    if sys.argv[1] == "check":
        print(json.dumps(missing()))  # noqa: T201 - what the test reads
    else:
        call = Call(*sys.argv[1:4], vad="vad" in sys.argv[4:])
        print(json.dumps(call.run()))  # noqa: T201 - what the test reads
