"""TLS for the server: the user's certificate, or one made for this run.

Browsers give a microphone to pages that came by https, or from localhost.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import tempfile
from collections.abc import Iterable
from pathlib import Path

import ifaddr
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..errors import InputError

SELF_SIGNED_DAYS = 30
_CLOCK_SKEW = datetime.timedelta(hours=1)
_WAY_OUT = "give both in PEM form, or --tls-self-signed"


class CertifiedContext(ssl.SSLContext):
    """A server's TLS settings with the certificate that it shows."""

    certificate: x509.Certificate

    @property
    def fingerprint_sha256(self) -> str:
        """The certificate's SHA-256 as browsers show it, in pairs of hexadecimal digits."""
        return fingerprint_sha256(self.certificate)


def server_ssl_context(
    cert: Path | None, key: Path | None, self_signed: bool, host: str
) -> CertifiedContext | None:
    """Returns the server's TLS context, None for plain HTTP.

    Args:
        cert: PEM file with the certificate and those that lead to its root.
        key: PEM file with its private key; None: it stands in `cert`.
        self_signed: make a certificate for this run; its key never stays on disk.
        host: the address that is listened on, named in a certificate that is made here.

    Raises:
        InputError: a file is missing, unreadable, encrypted or no certificate, or the two do not belong
            together.
    """
    if self_signed and (cert or key):
        given = "--tls-cert" if cert else "--tls-key"
        raise InputError(f"--tls-self-signed: expected no {given} beside it; leave one of the two out")
    if self_signed:
        return _self_signed_context(host)
    if cert is None and key is None:
        return None
    if cert is None:
        raise InputError(f"--tls-cert is missing, --tls-key is {key}; {_WAY_OUT}")
    context = _new_context()
    context.certificate = read_certificate(cert)
    _load(context, cert, key)
    return context


def read_certificate(path: Path) -> x509.Certificate:
    """Returns the server's certificate, the first in a PEM file.

    Raises:
        InputError: the file is missing, unreadable, or holds no certificate.
    """
    content = _read(path, "--tls-cert")
    try:
        return x509.load_pem_x509_certificates(content)[0]
    except ValueError:
        raise InputError(
            f"--tls-cert: {path}: expected a certificate in PEM form, got something else; "
            "convert it with: openssl x509 -inform DER -in FILE -out cert.pem"
        ) from None


def fingerprint_sha256(certificate: x509.Certificate) -> str:
    """Returns a certificate's SHA-256 as browsers show it, in pairs of hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def make_self_signed(names: Iterable[str], *, now: datetime.datetime) -> tuple[x509.Certificate, bytes]:
    """Returns a certificate for names and addresses, and its private key in PEM form.

    Args:
        names: host names and IP addresses; the first becomes the subject.
        now: when it begins to be valid, less an hour for clocks that are behind.
    """
    names = list(names)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=SELF_SIGNED_DAYS))
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return builder.sign(key, hashes.SHA256()), key_pem


def names_of_this_machine(host: str) -> list[str]:
    """Returns the names and addresses by which a server on `host` is reached, each once."""
    names = [*_named(host), "localhost", "127.0.0.1", "::1", *_named(socket.gethostname())]
    for adapter in ifaddr.get_adapters():
        for found in adapter.ips:
            names += _named(found.ip if isinstance(found.ip, str) else found.ip[0])
    return list(dict.fromkeys(names))


def _named(text: str) -> list[str]:
    """Returns a name or address if a certificate can hold it, else nothing."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        with contextlib.suppress(UnicodeError):
            return [text.encode("idna").decode("ascii")] if text else []
        return []
    # To a wildcard or link-local address no browser goes.
    return [] if address.is_unspecified or address.is_link_local else [str(address)]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _new_context() -> CertifiedContext:
    context = CertifiedContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _self_signed_context(host: str) -> CertifiedContext:
    context = _new_context()
    now = datetime.datetime.now(datetime.UTC)
    context.certificate, key_pem = make_self_signed(names_of_this_machine(host), now=now)
    certificate_pem = context.certificate.public_bytes(serialization.Encoding.PEM)
    # `ssl` reads keys from files only; the folder is this user's alone, and gone before anything is served.
    with tempfile.TemporaryDirectory(prefix="geneface-tls-") as folder:
        path = Path(folder) / "server.pem"
        path.touch(mode=0o600, exist_ok=False)
        path.write_bytes(key_pem + certificate_pem)
        context.load_cert_chain(path)
    return context


def _load(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    key_flag = "--tls-cert" if key is None else "--tls-key"
    place = f"{key_flag}: {cert if key is None else key}"
    if key is not None:
        _read(key, "--tls-key")

    def refuse_to_ask() -> str:  # else OpenSSL asks for the password on the terminal
        raise InputError(
            f"{place}: expected a key without a password, got an encrypted one; "
            "decrypt it with: openssl pkey -in FILE -out key.pem"
        )

    try:
        context.load_cert_chain(cert, key, password=refuse_to_ask)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InputError(
                f"{place}: expected the private key of {cert}, got the key of another certificate; {_WAY_OUT}"
            ) from None
        expected = f"expected the private key of {cert} in PEM form"
        raise InputError(f"{place}: {expected}, got none that OpenSSL reads; {_WAY_OUT}") from None


def _read(path: Path, flag: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{flag}: {path}: no such file; {_WAY_OUT}") from None
    except OSError as error:
        reason = (error.strerror or "an error").lower()
        raise InputError(
            f"{flag}: {path}: cannot be read, {reason}; change its permissions or its path"
        ) from None
