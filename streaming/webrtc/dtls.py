"""DTLS with peers' ECDSA and RSA certificates, authenticated by fingerprint alone."""

from __future__ import annotations

import hashlib
import logging

from aiortc import RTCPeerConnection
from aiortc.rtcdtlstransport import (
    RTCCertificate,
    RTCDtlsParameters,
    RTCDtlsTransport,
    SRTPProtectionProfile,
    State,
)
from OpenSSL import SSL, crypto

log = logging.getLogger(__name__)

FINGERPRINT_BYTES = {"sha-256": 32, "sha-384": 48, "sha-512": 64}
"""The hash functions of fingerprints that are known here (RFC 8122), and how long each is."""

# Forward secrecy only (RFC 8827, 6.5). The server's certificate decides between ECDSA and RSA: GStreamer's is
# RSA, and a peer that offers `actpass` is the server. The suites with SHA-1 are for old peers, as in aiortc.
CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
)


class Certificate(RTCCertificate):
    """aiortc's certificate, of ECDSA, with cipher suites for peers whose own is of RSA, too."""

    def _create_ssl_context(self, srtp_profiles: list[SRTPProtectionProfile]) -> SSL.Context:
        context = super()._create_ssl_context(srtp_profiles)
        context.set_cipher_list(":".join(CIPHERS).encode())
        return context


def replace_certificate(connection: RTCPeerConnection) -> None:
    """Replaces the certificate of a connection that has no transceiver yet."""
    connection._RTCPeerConnection__certificates = [  # type: ignore[attr-defined]
        Certificate.generateCertificate()
    ]


def replace_identity_check(transport: RTCDtlsTransport) -> None:
    """Makes a transport check the fingerprint of the peer's certificate without parsing it.

    aiortc has it parsed first, and `cryptography` refuses what does not matter here: the fingerprint alone
    says who the peer is (RFC 8827, 5.6), whatever version, serial number or dates stand in its certificate.
    """

    def validate(remote: RTCDtlsParameters) -> None:
        ssl = transport._ssl
        certificate = ssl.get_peer_certificate() if ssl is not None else None
        if certificate is None or not _matches(
            crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate), remote
        ):
            log.debug("a peer's certificate was not that of its offer")
            transport._set_state(State.FAILED)

    transport._validate_peer_identity = validate  # type: ignore[method-assign, assignment]


def _matches(certificate: bytes, remote: RTCDtlsParameters) -> bool:
    """Whether a certificate in DER has a fingerprint of those by the longest known hash (RFC 8122, 5)."""
    known = [f for f in remote.fingerprints if f.algorithm.lower() in FINGERPRINT_BYTES]
    longest = max((FINGERPRINT_BYTES[f.algorithm.lower()] for f in known), default=0)
    return any(
        bytes.fromhex(f.value.replace(":", ""))
        == hashlib.new(f.algorithm.lower().replace("-", ""), certificate).digest()
        for f in known
        if FINGERPRINT_BYTES[f.algorithm.lower()] == longest
    )
