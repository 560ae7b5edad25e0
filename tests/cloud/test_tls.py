"""The local certificate authority: names, file modes, renewal."""

from __future__ import annotations

import datetime
import ipaddress
import stat
from pathlib import Path

from cryptography import x509

from cloud.tls import ensure_local_tls


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_the_certificate_names_this_machine_and_descends_from_the_authority(
    tmp_path: Path,
) -> None:
    paths = ensure_local_tls(tmp_path, "gateway.example")
    server = certificate(paths.certificate)
    server.verify_directly_issued_by(certificate(paths.ca))
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    dns = names.get_values_for_type(x509.DNSName)
    assert {"localhost", "gateway.example"} <= set(dns)
    assert ipaddress.ip_address("127.0.0.1") in names.get_values_for_type(x509.IPAddress)


def test_private_keys_are_private(tmp_path: Path) -> None:
    ensure_local_tls(tmp_path, "localhost")
    keys = sorted(tmp_path.glob("*.key"))
    assert [key.name for key in keys] == ["ca.key", "server.key"]
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_what_is_good_is_kept(tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in _files(tmp_path, "localhost")}
    assert {p: p.read_bytes() for p in _files(tmp_path, "localhost")} == before


def test_an_expiring_server_certificate_is_renewed_under_the_same_authority(
    tmp_path: Path,
) -> None:
    paths = ensure_local_tls(tmp_path, "localhost")
    ca, old = paths.ca.read_bytes(), certificate(paths.certificate)
    later = old.not_valid_after_utc - datetime.timedelta(days=1)
    ensure_local_tls(tmp_path, "localhost", now=later)
    assert paths.ca.read_bytes() == ca
    assert certificate(paths.certificate).not_valid_after_utc > old.not_valid_after_utc


def test_an_expired_authority_is_renewed_with_everything_below_it(tmp_path: Path) -> None:
    paths = ensure_local_tls(tmp_path, "localhost")
    old = certificate(paths.ca)
    ensure_local_tls(tmp_path, "localhost", now=old.not_valid_after_utc)
    assert certificate(paths.ca) != old
    certificate(paths.certificate).verify_directly_issued_by(certificate(paths.ca))


def test_another_host_gets_a_certificate_of_its_name(tmp_path: Path) -> None:
    old = certificate(ensure_local_tls(tmp_path, "localhost").certificate)
    assert certificate(ensure_local_tls(tmp_path, "other.example").certificate) != old


def test_spoilt_or_swapped_files_are_made_anew(tmp_path: Path) -> None:
    paths = ensure_local_tls(tmp_path, "localhost")
    paths.certificate.write_text("spoilt")
    paths.key.write_bytes((tmp_path / "ca.key").read_bytes())
    ensure_local_tls(tmp_path, "localhost")
    certificate(paths.certificate).verify_directly_issued_by(certificate(paths.ca))


def _files(folder: Path, host: str) -> list[Path]:
    paths = ensure_local_tls(folder, host)
    return [paths.ca, paths.certificate, paths.key, folder / "ca.key"]
