"""DTLS with peers whose certificates are not ours: of RSA, or with fields that nobody else reads."""

from __future__ import annotations

import contextlib
import datetime
import hashlib

import pytest
from aiortc import rtcpeerconnection
from aiortc.rtcdtlstransport import SRTP_PROFILES, RTCCertificate, RTCDtlsFingerprint, RTCDtlsParameters
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from on_loop import on_loop, until
from OpenSSL import SSL, crypto
from webrtc_client import connect, ends, use_loopback

from streaming.webrtc.dtls import CIPHERS, Certificate, _matches

NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a peer")])
SRTP = b"SRTP_AES128_CM_SHA1_80"  # GStreamer's only one
RSA_BITS = (2048, 3072, 4096)


@pytest.fixture(scope="module")
def keys():
    """Keys of peers, by what they are."""
    found = {
        f"rsa{bits}": rsa.generate_private_key(public_exponent=65537, key_size=bits) for bits in RSA_BITS
    }
    return found | {
        "p256": ec.generate_private_key(ec.SECP256R1()),
        "p384": ec.generate_private_key(ec.SECP384R1()),
    }


def signed(key, serial=1):
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(NAME, NAME, key.public_key(), serial, now - day, now + day)
    return builder.sign(key, hashes.SHA256())


def context(key, certificate, ciphers=None):
    made = SSL.Context(SSL.DTLS_METHOD)
    made.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
    if ciphers:
        made.set_cipher_list(ciphers)
    made.use_certificate(certificate)
    made.use_privatekey(key)
    made.set_tlsext_use_srtp(SRTP)
    return made


def handshake(server, client):
    """Returns the cipher suite and the SRTP profile that two contexts agree on."""
    ends = SSL.Connection(server), SSL.Connection(client)
    ends[0].set_accept_state()
    ends[1].set_connect_state()
    done = set()
    for _ in range(20):
        for end, other in ((ends[1], ends[0]), (ends[0], ends[1])):
            with contextlib.suppress(SSL.WantReadError):
                end.do_handshake()
                done.add(end)
            with contextlib.suppress(SSL.WantReadError):
                other.bio_write(end.bio_read(65536))
        if len(done) == 2:
            return ends[1].get_cipher_name(), ends[1].get_selected_srtp_profile()
    raise AssertionError("no end of the handshake")


@pytest.mark.parametrize("kind", ["rsa2048", "rsa3072", "rsa4096", "p256", "p384"])
def test_a_peer_with_any_certificate_is_met_as_client_and_as_server(keys, kind):
    ours = Certificate.generateCertificate()._create_ssl_context(SRTP_PROFILES)
    theirs = context(keys[kind], signed(keys[kind]))
    cipher, profile = handshake(theirs, ours)
    assert cipher.startswith("ECDHE-RSA-" if kind.startswith("rsa") else "ECDHE-ECDSA-")
    assert ("GCM" in cipher or "CHACHA20" in cipher, profile) == (True, SRTP)
    assert handshake(ours, theirs)[0].startswith("ECDHE-ECDSA-")


@pytest.mark.parametrize("cipher", CIPHERS)
def test_each_suite_can_be_the_only_one_in_common(keys, cipher):
    ours = Certificate.generateCertificate()._create_ssl_context(SRTP_PROFILES)
    key = keys["rsa2048" if "RSA-" in cipher and "ECDSA" not in cipher else "p256"]
    assert handshake(context(key, signed(key), cipher.encode()), ours) == (cipher, SRTP)


@pytest.mark.parametrize("cipher", ["AES128-GCM-SHA256", "DHE-RSA-AES128-GCM-SHA256"])
def test_no_suite_without_forward_secrecy_or_beyond_the_list_is_taken(keys, cipher):
    ours = Certificate.generateCertificate()._create_ssl_context(SRTP_PROFILES)
    with pytest.raises(SSL.Error):
        handshake(context(keys["rsa2048"], signed(keys["rsa2048"]), cipher.encode()), ours)


@pytest.mark.parametrize("setup", ["actpass", "active", "passive"])
@on_loop
async def test_a_call_with_a_peer_of_an_rsa_certificate(keys, setup, monkeypatch):
    key = keys["rsa2048"]

    class RsaCertificate(RTCCertificate):
        @classmethod
        def generateCertificate(cls):  # noqa: N802 - aiortc's name
            return cls(key=key, cert=signed(key))

        def _create_ssl_context(self, srtp_profiles):
            return context(self._key, self._cert)

    use_loopback(monkeypatch)
    monkeypatch.setattr(rtcpeerconnection, "RTCCertificate", RsaCertificate)
    async with ends() as (ours, theirs):
        await connect(ours, theirs, change=lambda sdp: sdp.replace("a=setup:actpass", f"a=setup:{setup}"))
        dtls = theirs.video.receiver.transport
        assert isinstance(dtls._RTCDtlsTransport__local_certificate, RsaCertificate)
        assert dtls._role == ("client" if setup == "active" else "server")
        assert dtls._ssl.get_cipher_name().startswith("ECDHE-ECDSA-" if setup == "active" else "ECDHE-RSA-")
        await until(lambda: len(ours.packets) > 5)


@on_loop
async def test_a_peer_with_another_certificate_than_it_offered_is_not_met(monkeypatch):
    use_loopback(monkeypatch)
    others = {f"a=fingerprint:sha-{8 * size}": ":".join(["AB"] * size) for size in (32, 48, 64)}
    async with ends() as (ours, theirs):
        offer = await theirs.offer()
        lines = [
            f"{line[:21]} {others[line[:21]]}" if line[:21] in others else line
            for line in offer.split("\r\n")
        ]
        await theirs.accept(await ours.answer("\r\n".join(lines)))
        await until(lambda: ours.peer.state in ("failed", "closed"))
        assert "connected" not in ours.states


def with_version_4(certificate, key):
    """Returns a certificate in DER that says it is of version 4, which there is not."""
    der = bytearray(certificate.tbs_certificate_bytes)
    at = der.index(b"\xa0\x03\x02\x01\x02")
    der[at + 4] = 3
    signature = key.sign(bytes(der), ec.ECDSA(hashes.SHA256()))
    whole = certificate.public_bytes(serialization.Encoding.DER)
    rest = whole[whole.index(certificate.tbs_certificate_bytes) + len(der) :]
    algorithm = rest[: 2 + rest[1]]
    bits = b"\x03" + bytes([len(signature) + 1]) + b"\x00" + signature
    body = bytes(der) + algorithm + bits
    return b"\x30\x82" + len(body).to_bytes(2, "big") + body


def test_a_certificate_that_cryptography_refuses_is_hashed_all_the_same(keys):
    der = with_version_4(signed(keys["p256"]), keys["p256"])
    with pytest.raises(x509.InvalidVersion):
        x509.load_der_x509_certificate(der).fingerprint(hashes.SHA256())
    loaded = crypto.load_certificate(crypto.FILETYPE_ASN1, der)
    assert crypto.dump_certificate(crypto.FILETYPE_ASN1, loaded) == der
    remote = RTCDtlsParameters(fingerprints=[fingerprint("sha-256", der)])
    assert _matches(der, remote)


def fingerprint(algorithm, der):
    digest = hashlib.new(algorithm.replace("-", ""), der).digest()
    return RTCDtlsFingerprint(algorithm=algorithm.upper(), value=":".join(f"{byte:02x}" for byte in digest))


def test_one_fingerprint_by_the_longest_known_hash_has_to_match():
    right, wrong = fingerprint("sha-256", b"x"), fingerprint("sha-512", b"y")
    other = fingerprint("sha-256", b"y")
    assert _matches(b"x", RTCDtlsParameters(fingerprints=[other, right]))
    assert not _matches(b"x", RTCDtlsParameters(fingerprints=[other]))
    unknown = RTCDtlsFingerprint(algorithm="sha-1", value="AB:CD")
    assert _matches(b"x", RTCDtlsParameters(fingerprints=[unknown, right]))
    assert not _matches(b"x", RTCDtlsParameters(fingerprints=[right, wrong]))
    assert not _matches(b"x", RTCDtlsParameters(fingerprints=[unknown]))
    assert not _matches(b"x", RTCDtlsParameters(fingerprints=[]))
