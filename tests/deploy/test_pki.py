"""Certificates of the small authority: what a TLS client makes of them."""

import socket
import ssl
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from deploy.pki import Issued, issue_certificate, make_authority
from vht_federate.errors import InputError

NOW = datetime.now(UTC)


@pytest.fixture
def issued(tmp_path: Path) -> Issued:
    make_authority(tmp_path / "pki", now=NOW)
    return issue_certificate(tmp_path / "pki", "hospital-1", tmp_path / "h1", now=NOW, hosts=["h1.example.org", "::1"])


def handshake(served: Issued, ca: Path, host: str) -> None:
    """One TLS handshake over a socket pair; raises ssl.SSLError where the client refuses."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(served.certificate, served.key)
    client = ssl.create_default_context(cafile=str(ca))
    left, right = socket.socketpair()

    def accept() -> None:
        try:
            with server.wrap_socket(left, server_side=True) as secured:
                secured.recv(1)
        except (ssl.SSLError, OSError):
            left.close()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        with client.wrap_socket(right, server_hostname=host) as secured:
            secured.sendall(b"x")
    finally:
        right.close()
        thread.join(timeout=60)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "hospital-1", "h1.example.org", "::1"])
def test_a_client_with_the_authority_accepts_every_name(issued: Issued, host: str) -> None:
    handshake(issued, issued.ca, host)


def test_a_client_refuses_another_name_and_another_authority(issued: Issued, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(issued, issued.ca, "hospital-2")
    other = make_authority(tmp_path / "other", now=NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(issued, other.ca, "hospital-1")


def test_keys_are_private_and_the_authority_lies_beside(issued: Issued, tmp_path: Path) -> None:
    assert issued.key.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "pki" / "ca.key").stat().st_mode & 0o777 == 0o600
    assert issued.ca.read_bytes() == (tmp_path / "pki" / "ca.crt").read_bytes()
    assert not (issued.ca.parent / "ca.key").exists()


def test_a_certificate_cannot_sign_others(issued: Issued) -> None:
    certificate = x509.load_pem_x509_certificate(issued.certificate.read_bytes())
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca is False


def test_an_authority_that_exists_is_kept(tmp_path: Path) -> None:
    first = make_authority(tmp_path, now=NOW).certificate.read_bytes()
    assert make_authority(tmp_path, now=NOW).certificate.read_bytes() == first


def test_a_missing_authority_and_a_bad_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        issue_certificate(tmp_path, "hospital-1", tmp_path, now=NOW)
    assert caught.value.code == "VHT-INPUT-CA"
    with pytest.raises(InputError):
        issue_certificate(tmp_path, "../etc", tmp_path, now=NOW)
