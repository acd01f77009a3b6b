"""The evidence bundle: one folder that holds all an auditor needs besides the trusted public keys.

    manifest.json, manifest.jws   every other file by sha256 and size, signed by the coordinator
    permit.jwt, study.jws         what the authority allowed, what the data user asked
    user.pub.json                 the data user's key (the permit names its thumbprint)
    status/NAME.jwt               the issuer's status lists as the coordinator saw them
    nodes/NODE.json               each node's log: the entries of this permit, hashes of all others
    receipts/NODE.json            receipts that the node gave to the coordinator
    run.json                      what the coordinator says happened
    outputs/JOB-ROUND/NODE.json   what each node released: the result, and beside it NODE.safetensors where there are
                                  tensors; the noise is in them
    release/COMPONENT/…           the released component package, whole
    cohort/…                      the released synthetic cohort, whole

Files hold exactly what their owner wrote: JSON of nodes and receipts is canonical (RFC 8785), statements are one
line, so that a second spelling of the same content does not pass.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from vht_federate.errors import VerificationError
from vht_federate.evidence.finding import broken
from vht_federate.framing import Reply
from vht_federate.signing.canonical import canonical_bytes
from vht_federate.signing.keys import PublicKey, SigningKey
from vht_federate.signing.signed_manifest import Sealed, empty_folder, seal, unseal

__all__ = ["BUNDLE_TYP", "BundleParts", "open_bundle", "read_statement_file", "write_bundle"]

BUNDLE_TYP = "vht-bundle+jwt"
REQUIRED = ("permit.jwt", "study.jws", "user.pub.json", "run.json")
_NAME = r"[a-z0-9][a-z0-9-]{0,63}"
ALLOWED = (
    r"permit\.jwt|study\.jws|user\.pub\.json|run\.json",
    rf"status/{_NAME}\.jwt",
    rf"(nodes|receipts)/{_NAME}\.json",
    rf"outputs/[a-z]{{1,32}}-[0-9]{{1,4}}/{_NAME}\.(json|safetensors)",
    rf"release/{_NAME}/[A-Za-z0-9._/-]+",
    r"cohort/[A-Za-z0-9._/-]+",
)


@dataclass(frozen=True)
class BundleParts:
    """What goes into a bundle. ``nodes`` are exports of evidence logs, ``run`` the bytes of run.json."""

    permit: str
    study: str
    user_key: PublicKey
    statuses: Mapping[str, str]  # name ("start", "end", …) -> status list
    nodes: Mapping[str, Mapping[str, Any]]
    run: bytes
    receipts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    outputs: Mapping[str, Mapping[str, Reply]] = field(default_factory=dict)  # "train-1" -> node -> what it released
    component: Path | None = None  # folder of the package; its name becomes release/<name>
    component_name: str = "component"
    cohort: Path | None = None


def write_bundle(
    folder: Path, parts: BundleParts, key: SigningKey, *, study_id: str, permit_id: str, created_at: datetime
) -> Sealed:
    """Write and sign a bundle in the new ``folder``. Raises InputError for a file that has no place in one."""
    empty_folder(folder)
    texts = {"permit.jwt": parts.permit, "study.jws": parts.study}
    texts |= {f"status/{name}.jwt": token for name, token in parts.statuses.items()}
    values: dict[str, Any] = {"user.pub.json": parts.user_key.jwk()}
    values |= {f"nodes/{name}.json": dict(export) for name, export in parts.nodes.items()}
    values |= {f"receipts/{name}.json": list(tokens) for name, tokens in parts.receipts.items() if tokens}
    for name, text in texts.items():
        _write(folder / name, text.strip().encode() + b"\n")
    for name, value in values.items():
        _write(folder / name, canonical_bytes(value))
    for phase, replies in parts.outputs.items():
        for name, reply in replies.items():
            _write(folder / "outputs" / phase / f"{name}.json", canonical_bytes(reply.result))
            if reply.tensors:
                _write(folder / "outputs" / phase / f"{name}.safetensors", reply.tensors)
    _write(folder / "run.json", parts.run)
    if parts.component is not None:
        shutil.copytree(parts.component, folder / "release" / parts.component_name)
    if parts.cohort is not None:
        shutil.copytree(parts.cohort, folder / "cohort")
    facts = {
        "kind": "evidence",
        "study_id": study_id,
        "permit_id": permit_id,
        "created_at": created_at.isoformat(),
    }
    return seal(folder, facts, key, typ=BUNDLE_TYP, allowed=ALLOWED)


def open_bundle(folder: Path, coordinator: PublicKey) -> Sealed:
    """Verify the bundle's seal: every byte of every file, and no file more.

    Raises VerificationError VHT-VERIFY-BUNDLE naming the file.
    """
    if not folder.is_dir() or folder.is_symlink():
        raise broken(folder.name, "is not a bundle's folder", "BUNDLE")
    try:
        return unseal(folder, coordinator, typ=BUNDLE_TYP, allowed=ALLOWED, required=REQUIRED)
    except VerificationError as error:
        raise VerificationError(error.message, code="VHT-VERIFY-BUNDLE", hint=broken("", "", "").hint) from error


def read_statement_file(folder: Path, name: str) -> str:
    """A signed statement that is its file's only line. Raises VerificationError."""
    try:
        text = (folder / name).read_bytes().decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise broken(name, "is missing or not a signed statement", "BUNDLE") from error
    if not text.endswith("\n") or text.count("\n") != 1:
        raise broken(name, "holds more than one signed statement", "BUNDLE")
    return text[:-1]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
