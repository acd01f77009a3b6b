"""A sealed folder: every file listed with its sha256 in ``manifest.json``, and a signature over that manifest.

A file that ends in ``.json`` is JSON that can be read in one way only, whatever its digest.

``release.sha256`` everywhere in the project is the sha256 of the bytes of ``manifest.json``.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vht_federate.errors import InputError, VerificationError
from vht_federate.signing.canonical import sha256_hex
from vht_federate.signing.keys import PublicKey, SigningKey, unverified_claims
from vht_federate.signing.strict_json import StrictJsonError, read_json

__all__ = ["MANIFEST", "SIGNATURE", "Sealed", "empty_folder", "seal", "unseal", "write_json"]

MANIFEST = "manifest.json"
SIGNATURE = "manifest.jws"
_SIGNATURE_BYTES = 1 << 16  # no statement is longer; of a longer file the rest is not read, and it is refused


@dataclass(frozen=True)
class Sealed:
    """A folder that was sealed, or whose seal was verified."""

    folder: Path
    sha256: str
    manifest: dict[str, Any]


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON with a final newline. Raises ValueError for NaN."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def empty_folder(folder: Path) -> Path:
    """Make ``folder``. Raises InputError VHT-INPUT-FOLDER where it exists and holds something."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise InputError(f"{folder.name} is not empty", code="VHT-INPUT-FOLDER", hint="choose a new folder")
    return folder


def seal(folder: Path, facts: dict[str, Any], key: SigningKey, *, typ: str, allowed: Iterable[str]) -> Sealed:
    """Write manifest and signature over all files of ``folder``.

    ``facts`` (kind, study, permit, …) stand beside ``files`` in the manifest. Raises InputError for a file that no
    pattern of ``allowed`` (regular expressions of whole relative paths) names.
    """
    files: dict[str, Any] = {}
    for name, path in _files(folder):
        if not _listed(name, allowed):
            raise InputError(f"{name} does not belong into this package", code="VHT-INPUT-PACKAGE")
        content = path.read_bytes()
        files[name] = {"sha256": sha256_hex(content), "bytes": len(content)}
    manifest = {"schema_version": "1", **facts, "files": files}
    write_json(folder / MANIFEST, manifest)
    digest = sha256_hex((folder / MANIFEST).read_bytes())
    token = key.sign({"kind": manifest.get("kind"), "sha256": digest}, typ=typ)
    (folder / SIGNATURE).write_text(token + "\n")
    return Sealed(folder, digest, manifest)


def unseal(folder: Path, key: PublicKey | None, *, typ: str, allowed: Iterable[str], required: Iterable[str]) -> Sealed:
    """Verify signature, manifest, every file, and that there is no other file. ``key`` None: all but who signed.

    Raises VerificationError VHT-VERIFY-PACKAGE naming the file, VHT-VERIFY-SIGNATURE for the seal itself.
    """
    present = dict(_files(folder))
    claims = _signed_claims(folder, key, typ)
    try:
        digest = _digest(folder / MANIFEST)
        if claims.get("sha256") != digest:  # before anything unsigned is parsed
            raise _broken(MANIFEST, "is not the one that was signed")
        manifest = read_json((folder / MANIFEST).read_bytes())
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(MANIFEST, "is missing or not a manifest") from error
    if claims.get("kind") != manifest.get("kind"):
        raise _broken(MANIFEST, "is not the one that was signed")
    for name in sorted(present.keys() | files.keys() | set(required)):
        if name not in files or not _listed(name, allowed):
            raise _broken(name, "is not listed" if name in present else "is required and absent")
        if name not in present:
            raise _broken(name, "is listed and absent")
        if _digest(present[name]) != files[name]["sha256"]:
            raise _broken(name, "was changed")
        if name.endswith(".json"):
            _require_strict(name, present[name])
    return Sealed(folder, digest, manifest)


def _signed_claims(folder: Path, key: PublicKey | None, typ: str) -> dict[str, Any]:
    """What the seal says. The file is the statement and one newline, nothing else."""
    try:
        with (folder / SIGNATURE).open("rb") as file:
            token, newline, rest = file.read(_SIGNATURE_BYTES).decode("ascii").partition("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _broken(SIGNATURE, "is missing or not a signature") from error
    if newline != "\n" or rest:
        raise _broken(SIGNATURE, "was changed")
    try:
        return key.verify(token, typ=typ) if key else unverified_claims(token)
    except VerificationError as error:
        raise VerificationError(f"{SIGNATURE}: {error.message}", code=error.code) from error


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Regular files below ``folder`` without manifest and signature; a link is refused."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise _broken(name, "is not a regular file")
        if path.is_file() and name not in (MANIFEST, SIGNATURE):
            yield name, path


def _digest(path: Path) -> str:
    """sha256 in hex, read piece by piece: a file may be of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_strict(name: str, path: Path) -> None:
    try:
        read_json(path.read_bytes())
    except (StrictJsonError, RecursionError) as error:
        raise _broken(name, f"is not JSON that can be read in one way only: {error}") from error


def _listed(name: str, allowed: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in allowed)


def _broken(name: str, problem: str) -> VerificationError:
    return VerificationError(f"{name} {problem}", code="VHT-VERIFY-PACKAGE")
