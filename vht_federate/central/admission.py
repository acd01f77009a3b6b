"""What a publication passes: plain archive, the coordinator's seal, no rows, evidence and claims that hold, a cohort as
its codebook says.

Publishing needs no account, so nothing is parsed before the seal holds: until then files are unpacked, measured and
hashed, each in bounded memory.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from vht_federate.central.archive import Limits, pack, unpack
from vht_federate.central.claims import check_claims
from vht_federate.central.row_detection.cohorts import look_at_cohort
from vht_federate.central.row_detection.files import look_at_heads, look_for_rows
from vht_federate.central.store import Catalogue, NewRelease, Publication
from vht_federate.errors import InputError, PublicationError, VerificationError
from vht_federate.evidence.bundle import open_bundle
from vht_federate.evidence.log_history import require_same_history
from vht_federate.evidence.node_log import read_node_log
from vht_federate.evidence.trust import TrustFile
from vht_federate.evidence.verify import Verification, verify_bundle
from vht_federate.packaging.codebook import Codebook
from vht_federate.signing.strict_json import read_json

__all__ = ["Admission"]


class Admission:
    """Takes archives into a catalogue, one at a time. ``trust`` is a file, read for every publication."""

    def __init__(self, catalogue: Catalogue, trust: Path, clock: Callable[[], datetime], limits: Limits) -> None:
        self._catalogue = catalogue
        self._trust = trust
        self._clock = clock
        self._limits = limits

    def admit(self, archive: BinaryIO) -> tuple[Publication, bool]:
        """The publication, and whether it is new: the same bundle again changes nothing.

        Raises PublicationError VHT-PUBLICATION-*; then nothing of the archive is kept.
        """
        work = Path(tempfile.mkdtemp(dir=self._catalogue.incoming))
        try:
            bundle = work / "bundle"
            unpack(archive, bundle, self._limits)
            look_at_heads(bundle)
            existing = self._known(bundle)
            if existing is not None:
                return existing, False
            verified = self._judged(bundle)
            with (work / "bundle.tar.gz").open("wb") as file:
                pack(bundle, file)
            publication = self._publication(verified)
            return self._catalogue.add(work, publication, _releases(bundle, verified)), True
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _judged(self, bundle: Path) -> Verification:
        try:
            verified = self._verified(bundle)
            if not verified.releases:
                raise PublicationError(
                    f"the run ended as {verified.run.state} and released nothing",
                    code="VHT-PUBLICATION-EMPTY",
                    hint="only completed runs are published",
                )
            for kind in verified.releases:
                check_claims(bundle / _folder_of(kind, verified), kind, verified)
            if "cohort" in verified.releases:
                _check_cohort(bundle / "cohort", verified)
        except RecursionError as error:
            raise PublicationError(
                "a file is nested deeper than any document of a study", code="VHT-PUBLICATION-ROWS"
            ) from error
        return verified

    def _known(self, bundle: Path) -> Publication | None:
        """A publication with the very same bytes: every file as the one that was verified."""
        manifest = bundle / "manifest.json"
        publication = self._catalogue.find(_digest(manifest)) if manifest.is_file() else None
        if publication is None:
            return None
        stored = self._catalogue.folder(publication.id) / "bundle"
        return publication if _digests(bundle) == _digests(stored) else None

    def _verified(self, bundle: Path) -> Verification:
        try:
            trust = TrustFile.read(self._trust)
            open_bundle(bundle, trust.coordinator_key)
            look_for_rows(bundle)
            verified = verify_bundle(bundle, trust)
            self._compare_logs(verified, trust)
            return verified
        except VerificationError as error:
            raise PublicationError(
                f"the evidence does not hold: {error.message} ({error.code})",
                code="VHT-PUBLICATION-EVIDENCE",
                hint=error.hint,
            ) from error

    def _compare_logs(self, verified: Verification, trust: TrustFile) -> None:
        """Each node's log goes on from what its key signed in publications before."""
        for name, log in verified.logs.items():
            key = trust.node_key(name)
            published = [known for known in self._catalogue.publications() if name in known.evidence["entries_by_node"]]
            for known in sorted(published, key=lambda known: -int(known.evidence["entries_by_node"][name])):
                content = (self._catalogue.folder(known.id) / "bundle" / log.file).read_bytes()
                if key is not None and read_json(content)["public_key"] == key.jwk():  # else a log of before its key
                    earlier = read_node_log(log.file, content, name, known.permit_id, key)
                    require_same_history(log, earlier, f"publication {known.id}")
                    break

    def _publication(self, verified: Verification) -> Publication:
        return Publication(
            id=verified.sha256[:16],
            sha256=verified.sha256,
            received_at=self._clock().isoformat(),
            study_id=verified.study.study_id,
            study_title=verified.study.title,
            permit_id=verified.permit.permit_id,
            evidence={**verified.as_dict(), "permit": verified.permit.claims()},
            releases={},
        )


def _check_cohort(folder: Path, verified: Verification) -> None:
    """The cohort's codebook is the one in the signed study, which every node checked; its rows fit it."""
    try:
        codebook = read_json((folder / "codebook.json").read_bytes())
        rows = int(read_json((folder / "manifest.json").read_bytes())["rows"])
        book = Codebook.read(codebook)
    except (OSError, ValueError, KeyError, TypeError, InputError) as error:
        raise PublicationError(
            "cohort/ is not described by a codebook and a number of rows", code="VHT-PUBLICATION-COLUMNS"
        ) from error
    if codebook != verified.study.codebook:
        raise PublicationError(
            "cohort/codebook.json is not the codebook of the signed study", code="VHT-PUBLICATION-COLUMNS"
        )
    look_at_cohort(folder, book, rows)


def _folder_of(kind: str, verified: Verification) -> str:
    return "cohort" if kind == "cohort" else f"release/{verified.study.component.name}"


def _releases(bundle: Path, verified: Verification) -> list[NewRelease]:
    releases = []
    for kind, sha256 in verified.releases.items():
        folder = _folder_of(kind, verified)
        facts = _facts(bundle / folder, kind)
        component = facts["component"]
        stem = (
            f"{component['name']}-{component['version']}" if kind == "component" else f"{component['profile']}-cohort"
        )
        releases.append(NewRelease(f"{stem}-{sha256[:8]}", kind, folder, sha256, facts))
    return releases


def _facts(folder: Path, kind: str) -> dict[str, Any]:
    """What lists and pages need of a release's manifest, with a component's title and description."""
    manifest: dict[str, Any] = read_json((folder / "manifest.json").read_bytes())
    facts = {name: value for name, value in manifest.items() if name not in ("files", "tables_sha256")}
    facts["bytes"] = sum(file["bytes"] for file in manifest["files"].values())
    if kind == "component":
        component = read_json((folder / "component.json").read_bytes())
        facts |= {name: component[name] for name in ("title", "description", "profile_title")}
    else:
        report = read_json((folder / "sdmetrics_report.json").read_bytes())
        facts["quality"] = {name: report[name] for name in ("worst_column", "worst_pair")}
    return facts


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _digest(path) for path in files}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
