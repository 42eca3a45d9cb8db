"""One peer's connection: offers, ICE and DTLS, RTP both ways, jitter, Opus, H.264 and VP8."""
