"""A small certificate authority for TLS between our services: ECDSA P-256, X.509 (RFC 5280).

For a federation on one machine and for trials; a hospital in production brings certificates of its own PKI. Keys
are PKCS#8 PEM with mode 0600 and never leave the folder they were made in.
"""

import ipaddress
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vht_federate.errors import InputError
from vht_federate.files import create_private

__all__ = ["Issued", "issue_certificate", "make_authority"]

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 397  # what browsers accept at most
_NAME = re.compile(r"^[a-z0-9][a-z0-9.-]{0,62}$")
_SKEW = timedelta(minutes=5)  # peers' clocks may be behind


@dataclass(frozen=True)
class Issued:
    """Paths of one certificate, its key, and the authority that signed it (PEM)."""

    certificate: Path
    key: Path
    ca: Path


def make_authority(folder: Path, *, now: datetime, name: str = "vht-federate local CA") -> Issued:
    """Make ``ca.crt`` and ``ca.key`` in ``folder``; keep those that exist."""
    certificate, key_path = folder / "ca.crt", folder / "ca.key"
    if certificate.exists() and key_path.exists():
        return Issued(certificate, key_path, certificate)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    built = (
        _builder(subject, subject, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_key(key_path, key)
    certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    return Issued(certificate, key_path, certificate)


def issue_certificate(ca: Path, name: str, out: Path, *, now: datetime, hosts: Sequence[str] = ()) -> Issued:
    """Sign a certificate ``name.crt`` with ``name.key`` in ``out``, and put ``ca.crt`` beside them.

    Good for servers and clients; alternative names: localhost, 127.0.0.1, ``name`` and ``hosts``. Raises InputError.
    """
    if not _NAME.match(name):
        raise InputError(f"{name!r} is no name for a certificate", hint="lower-case letters, digits, '-' and '.'")
    authority, authority_key = _read_authority(ca)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    built = (
        _builder(subject, authority.subject, key.public_key(), now, CERTIFICATE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(_alternative_names(name, hosts)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    issued = Issued(out / f"{name}.crt", out / f"{name}.key", out / "ca.crt")
    _write_key(issued.key, key)
    issued.certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    if issued.ca.resolve() != (ca / "ca.crt").resolve():
        shutil.copyfile(ca / "ca.crt", issued.ca)
    return issued


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_names(name: str, hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(["localhost", "127.0.0.1", name, *hosts]):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _read_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} holds no certificate authority", code="VHT-INPUT-CA", hint="make one with 'vht pki ca --out'"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"the authority in {folder} has no ECDSA key", code="VHT-INPUT-CA")
    return certificate, key


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    create_private(path, pem)
