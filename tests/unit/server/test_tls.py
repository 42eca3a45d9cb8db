import datetime
import hashlib
import ipaddress
import socket
import ssl
import stat
import tempfile
from pathlib import Path

import ifaddr
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from streaming.errors import InputError
from streaming.server import tls

NOW = datetime.datetime(2030, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


@pytest.fixture
def files(tmp_path):
    """A certificate and its key, as files."""
    certificate, key_pem = tls.make_self_signed(["avatar.example"], now=datetime.datetime.now(datetime.UTC))
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(key_pem)
    return cert, key


def shake_hands(context, name, trusted):
    """Returns the certificate that a client accepts for a name, without a network."""
    client_context = ssl.create_default_context(
        cadata=trusted.public_bytes(serialization.Encoding.PEM).decode()
    )
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return client.getpeercert()


def names_in(certificate):
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return names.get_values_for_type(x509.DNSName) + addresses


def refusal(*given):
    with pytest.raises(InputError) as caught:
        tls.server_ssl_context(*given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_flags_there_is_no_tls():
    assert tls.server_ssl_context(None, None, False, "127.0.0.1") is None


def test_a_certificate_of_the_user_is_shown(files):
    context = tls.server_ssl_context(*files, False, "127.0.0.1")
    assert context is not None
    assert shake_hands(context, "avatar.example", context.certificate)["subject"] == (
        (("commonName", "avatar.example"),),
    )
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_key_and_certificate_may_stand_in_one_file(files):
    cert, key = files
    cert.write_bytes(cert.read_bytes() + key.read_bytes())
    context = tls.server_ssl_context(cert, None, False, "127.0.0.1")
    assert context is not None
    assert shake_hands(context, "avatar.example", context.certificate)


def test_the_fingerprint_is_the_browsers(files):
    context = tls.server_ssl_context(*files, False, "127.0.0.1")
    assert context is not None
    der = context.certificate.public_bytes(serialization.Encoding.DER)
    assert context.fingerprint_sha256.replace(":", "") == hashlib.sha256(der).hexdigest().upper()
    assert context.fingerprint_sha256.count(":") == 31


def test_files_that_cannot_be_used_are_refused_by_their_flag(files, tmp_path):
    cert, key = files
    missing, empty, folder = tmp_path / "none.pem", tmp_path / "empty.pem", tmp_path
    empty.write_bytes(b"")
    assert refusal(missing, key, False, "").startswith(f"--tls-cert: {missing}: no such file; ")
    assert refusal(cert, missing, False, "").startswith(f"--tls-key: {missing}: no such file; ")
    assert refusal(folder, key, False, "").startswith(f"--tls-cert: {folder}: cannot be read, ")
    assert refusal(empty, key, False, "").startswith(f"--tls-cert: {empty}: expected a certificate")
    assert refusal(key, key, False, "").startswith(f"--tls-cert: {key}: expected a certificate")
    assert refusal(cert, empty, False, "").startswith(f"--tls-key: {empty}: expected the private key")
    assert refusal(cert, cert, False, "").startswith(f"--tls-key: {cert}: expected the private key")
    assert refusal(cert, None, False, "").startswith(f"--tls-cert: {cert}: expected the private key")


def test_a_key_of_another_certificate_is_refused(files, tmp_path):
    _, other_pem = tls.make_self_signed(["other"], now=NOW)
    other = tmp_path / "other.pem"
    other.write_bytes(other_pem)
    said = refusal(files[0], other, False, "")
    assert said.startswith(
        f"--tls-key: {other}: expected the private key of {files[0]}, got the key of another"
    )


def test_an_encrypted_key_is_refused_and_nobody_is_asked(files):
    cert, key = files
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert "got an encrypted one" in refusal(cert, key, False, "")


def test_flags_that_contradict_each_other_are_refused(files):
    cert, key = files
    assert "expected no --tls-cert" in refusal(cert, key, True, "")
    assert "expected no --tls-key" in refusal(None, key, True, "")
    assert refusal(None, key, False, "").startswith("--tls-cert is missing")


def test_a_self_signed_certificate_is_good_for_every_name_of_this_machine(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "workshop")
    nic = ifaddr.Adapter("eth0", "eth0", [])
    nic.ips = [
        ifaddr.IP("192.168.7.9", 24, "eth0"),
        ifaddr.IP(("fd00::7", 0, 0), 64, "eth0"),
        ifaddr.IP(("fe80::7", 0, 2), 64, "eth0"),
    ]
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: [nic])
    context = tls.server_ssl_context(None, None, True, "10.0.0.5")
    assert context is not None
    assert sorted(names_in(context.certificate)) == sorted(
        ["localhost", "workshop", "10.0.0.5", "127.0.0.1", "::1", "192.168.7.9", "fd00::7"]
    )
    for name in ("localhost", "workshop", "192.168.7.9", "::1"):
        assert shake_hands(context, name, context.certificate)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(context, "elsewhere", context.certificate)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "x" * 70 + ".example"])
def test_a_host_that_names_nothing_is_left_out(host):
    names = tls.names_of_this_machine(host)
    assert host not in names
    assert "localhost" in names
    tls.make_self_signed(names, now=NOW)


def test_a_name_beyond_ascii_is_written_as_browsers_ask_for_it():
    assert tls.names_of_this_machine("büro.example")[0] == "xn--bro-hoa.example"


def test_a_self_signed_certificate_is_short_lived_and_for_servers():
    certificate, key_pem = tls.make_self_signed(["localhost"], now=NOW)
    assert certificate.not_valid_before_utc == NOW - datetime.timedelta(hours=1)
    assert certificate.not_valid_after_utc == NOW + datetime.timedelta(days=30)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert serialization.load_pem_private_key(key_pem, None).curve.name == "secp256r1"
    assert ipaddress.ip_address("127.0.0.1") not in names_in(certificate)


def test_the_key_is_on_disk_for_this_user_alone_and_only_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = []
    load = ssl.SSLContext.load_cert_chain

    def look(self, certfile, *rest, **more):
        path = Path(certfile)
        seen.append((stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)))
        return load(self, certfile, *rest, **more)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", look)
    assert tls.server_ssl_context(None, None, True, "127.0.0.1") is not None
    assert seen == [(0o600, 0o700)]
    assert list(tmp_path.iterdir()) == []
