"""Make a node's state directory: configuration, keys, database. Running it again keeps every key."""

import secrets
import shutil
from pathlib import Path
from typing import Any

from connector.governance.node_secret import NodeSecret
from connector.settings import NodeFiles, NodeSettings
from connector.store.node_database import open_database
from connector.supernode import create_key
from vht_federate.errors import InputError
from vht_federate.files import create_private, private_files
from vht_federate.signing.keys import PublicKey, SigningKey

__all__ = ["provision"]


def provision(state: Path, settings: NodeSettings, issuer_key: Path) -> dict[str, Any]:
    """Write everything ``vht node serve`` needs. Raises InputError for a file that is missing or no key."""
    PublicKey.read(issuer_key)
    for path in (settings.certificate, settings.key, settings.ca):
        if not path.is_file():
            raise InputError(f"there is no file {path}", code="VHT-INPUT-TLS", hint="make one with 'vht pki cert'")
    with private_files(state):
        return _provision(state, settings, issuer_key)


def _provision(state: Path, settings: NodeSettings, issuer_key: Path) -> dict[str, Any]:
    files = NodeFiles(state.resolve())
    NodeSecret.create(files.node_secret)
    evidence = SigningKey.create(files.evidence_key)
    create_key(files.supernode_key)
    if not files.operator_token.exists():
        create_private(files.operator_token, secrets.token_urlsafe(32).encode() + b"\n")
    if issuer_key.resolve() != files.issuer_key:
        shutil.copyfile(issuer_key, files.issuer_key)
    files.visits.mkdir(exist_ok=True, mode=0o700)
    settings.write(state)
    open_database(settings, files).close()
    return {
        "state": str(state),
        "name": settings.name,
        "outward": settings.outward_url,
        "internal": settings.internal_url,
        "evidence_key": str(files.evidence_key.with_suffix(".pub.json")),
        "evidence_kid": evidence.public.kid,
        "supernode_key": str(files.supernode_key.with_suffix(".pub")),
    }
