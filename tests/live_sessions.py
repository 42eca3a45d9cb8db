"""The sessions of a server in this process, with peers: `import live_sessions`."""

from __future__ import annotations

from aiortc_client import AiortcPeer

from streaming.pipeline.loaded_speaker import LoadedSpeaker
from streaming.pipeline.render_size import FrameCost
from streaming.session.metrics import Metrics
from streaming.webrtc.sdp_offer import Offer


class LiveSessions:
    """What a test of whole sessions asks of them; whoever derives from it makes `sessions`."""

    def __init__(self, speaker, networks):
        self.metrics, self.peers = Metrics(), []
        self._speaker, self._networks = speaker, networks

    def host(self, raymarcher, *sizes_px):
        """Returns the speaker, drawn in these sizes, the first to begin with."""
        return LoadedSpeaker(
            speaker=self._speaker,
            networks=self._networks,
            raymarcher=raymarcher,
            sizes_px=sizes_px,
            start_px=sizes_px[0],
            costs={size: FrameCost(render_ms=2.0, other_ms=5.0) for size in sizes_px},
            threads=1,
        )

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        for peer in self.peers:
            await peer.close()
        await self.sessions.aclose()

    async def connect(self, speaker="Tiny"):
        """Returns a connected peer and its session."""
        peer = AiortcPeer()
        self.peers.append(peer)
        session, answer = await self.sessions.open(speaker, Offer.parse(await peer.offer()))
        await peer.accept(answer)
        return peer, session

    def sample(self, name, **labels):
        """Returns a metric's value."""
        return self.metrics.registry.get_sample_value(f"geneface_{name}", labels)
