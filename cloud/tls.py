"""A certificate authority of this machine's own, and the gateway's certificate that it signs.

Keys are ECDSA P-256 in files that only their owner can read. Everything is made when it is missing
and made anew before it expires.
"""

from __future__ import annotations

import datetime
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cascade.errors import ClusterError
from cascade.files import write_whole

_CA_LIFE: Final = datetime.timedelta(days=3650)
_LEAF_LIFE: Final = datetime.timedelta(days=90)
_RENEW_BEFORE: Final = datetime.timedelta(days=7)
# A clock that is a little behind must not find the certificate in its future.
_CLOCK_SKEW: Final = datetime.timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class TlsPaths:
    """PEM files: the authority's certificate, and the server's certificate and private key."""

    ca: Path
    certificate: Path
    key: Path


def ensure_local_tls(folder: Path, host: str, *, now: datetime.datetime | None = None) -> TlsPaths:
    """The files of a local authority under ``folder``; made or renewed where needed.

    Arguments:
        host: a name or address under which the server is reached, besides localhost, 127.0.0.1 and
            this host's name.
        now: the time by which expiry is judged; the clock's by default.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    paths = TlsPaths(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    ca_key_file = folder / "ca.key"
    names = _names(host)
    ca = _load(paths.ca, ca_key_file)
    if ca is None or not _lasts(ca[0], now):
        ca = _new_ca(now)
        _save(ca, paths.ca, ca_key_file)
    server = _load(paths.certificate, paths.key)
    if server is None or not _fits(server[0], ca[0], names, now):
        leaf = _new_leaf(ca, "cascade gateway", names, ExtendedKeyUsageOID.SERVER_AUTH, now)
        _save(leaf, paths.certificate, paths.key)
    return paths


def ensure_local_client(
    folder: Path, name: str, *, now: datetime.datetime | None = None
) -> tuple[Path, Path]:
    """A client certificate of the local authority under ``folder`` and its private key; made or
    renewed where needed.

    Arguments:
        name: the caller's name, as its common name.

    Raises:
        ClusterError: there is no authority; ``ensure_local_tls`` makes one.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    certificate, key = folder / f"client-{name}.pem", folder / f"client-{name}.key"
    ca = _load(folder / "ca.pem", folder / "ca.key")
    if ca is None:
        raise ClusterError(f"there is no certificate authority in {folder}")
    names: list[x509.GeneralName] = [x509.DNSName(name)]
    made = _load(certificate, key)
    if made is None or not _fits(made[0], ca[0], names, now):
        _save(_new_leaf(ca, name, names, ExtendedKeyUsageOID.CLIENT_AUTH, now), certificate, key)
    return certificate, key


_Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def _new_ca(now: datetime.datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cascade local authority")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, name, key, now, _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _new_leaf(
    ca: _Pair,
    name: str,
    names: list[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    now: datetime.datetime,
) -> _Pair:
    authority, authority_key = ca
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _builder(subject, authority.subject, key, now, _LEAF_LIFE)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(issuer_id, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return certificate, key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
    life: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + life)
    )


def _names(host: str) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for name in dict.fromkeys(["localhost", "127.0.0.1", host, socket.gethostname()]):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            names.append(x509.DNSName(name))
    return names


def _load(certificate_file: Path, key_file: Path) -> _Pair | None:
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return None
    return (certificate, key) if key.public_key() == certificate.public_key() else None


def _lasts(certificate: x509.Certificate, now: datetime.datetime) -> bool:
    return certificate.not_valid_after_utc - _RENEW_BEFORE > now


def _fits(
    server: x509.Certificate,
    ca: x509.Certificate,
    names: list[x509.GeneralName],
    now: datetime.datetime,
) -> bool:
    try:
        server.verify_directly_issued_by(ca)
        sent = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return _lasts(server, now) and set(names) <= set(sent)


def _save(pair: _Pair, certificate_file: Path, key_file: Path) -> None:
    certificate, key = pair
    # Key first: a certificate without its key would be taken for a whole pair.
    write_whole(
        key_file,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        private=True,
    )
    write_whole(certificate_file, certificate.public_bytes(serialization.Encoding.PEM))
