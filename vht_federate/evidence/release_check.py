"""The released component and cohort: their own seals, the nodes' receipts, and the privacy they claim."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vht_federate.domain.permit import Permit
from vht_federate.domain.study import StudyRequest
from vht_federate.errors import VerificationError
from vht_federate.evidence.finding import TOLERANCE, broken
from vht_federate.evidence.ledger_check import Compose
from vht_federate.evidence.run_check import RunClaims
from vht_federate.evidence.statement_check import Spends, check_statement
from vht_federate.evidence.visit_record import VisitRecord
from vht_federate.packaging.cohort import verify_cohort
from vht_federate.packaging.component import verify_package
from vht_federate.signing.keys import PublicKey
from vht_federate.signing.signed_manifest import Sealed
from vht_federate.signing.strict_json import read_json

__all__ = ["check_releases", "release_folders"]

_VERIFY: dict[str, Callable[[Path, PublicKey], Sealed]] = {"component": verify_package, "cohort": verify_cohort}


def release_folders(folder: Path, component: str) -> dict[str, str]:
    """Kind -> folder within the bundle, for what the bundle releases. Raises VerificationError for another release."""
    names = sorted(path.name for path in (folder / "release").glob("*"))
    if [name for name in names if name != component]:
        raise broken(f"release/{names[0]}", f"is not the study's component {component}", "RELEASE")
    folders = {"component": f"release/{component}"} if names else {}
    return folders | ({"cohort": "cohort"} if (folder / "cohort").is_dir() else {})


def check_releases(
    folder: Path,
    coordinator: PublicKey,
    permit: Permit,
    request: StudyRequest,
    run: RunClaims,
    records: Mapping[str, VisitRecord],
    engines: Mapping[str, Mapping[str, str]],
    spends: Spends,
    compose: Compose,
) -> dict[str, Sealed]:
    """Verify every release of the bundle, by kind. Raises VerificationError VHT-VERIFY-RELEASE or of the package."""
    folders = release_folders(folder, request.component.name)
    if folders and not run.completed:
        raise broken(next(iter(folders.values())), f"was released by a run that ended as {run.state}", "RELEASE")
    claimed, present = set(run.releases), set(folders)
    if claimed != present:
        raise broken("run.json", f"names other releases than the bundle holds: {sorted(claimed ^ present)}", "RELEASE")
    sealed = {}
    for kind, where in folders.items():
        sealed[kind] = _verified(folder, where, kind, coordinator)
        _check_manifest(f"{where}/manifest.json", sealed[kind], kind, permit, request, run)
        _check_acknowledged(kind, where, sealed[kind].sha256, run, records)
        check_statement(folder, where, kind, request.plan, engines, spends, compose)
        _check_figures(folder, where, sealed[kind])
    return sealed


def _verified(folder: Path, where: str, kind: str, coordinator: PublicKey) -> Sealed:
    try:
        return _VERIFY[kind](folder / where, coordinator)
    except VerificationError as error:
        raise VerificationError(f"{where}/{error.message}", code=error.code, hint=error.hint) from error


def _check_manifest(
    file: str, sealed: Sealed, kind: str, permit: Permit, request: StudyRequest, run: RunClaims
) -> None:
    manifest: dict[str, Any] = sealed.manifest
    if kind not in permit.release_types:
        raise broken(file, f"is a {kind}, which the permit does not allow to be released", "RELEASE")
    if (manifest.get("study_id"), manifest.get("permit_id")) != (request.study_id, permit.permit_id):
        raise broken(file, "names another study or another permit", "RELEASE")
    digest = (manifest.get("component") or {}).get("digest")
    if digest != request.component.digest:
        raise broken(file, "names another component than the study", "RELEASE")
    if run.releases[kind] != sealed.sha256:
        raise broken("run.json", f"names another digest of the {kind} than {file} has", "RELEASE")


def _check_acknowledged(kind: str, where: str, sha256: str, run: RunClaims, records: Mapping[str, VisitRecord]) -> None:
    for name in run.present():
        record = records[name]
        entries = [
            entry for entry, event in record.acknowledged if (event.kind, event.artifact_sha256) == (kind, sha256)
        ]
        if not entries:
            raise broken(record.log.file, f"does not acknowledge the release of {where}", "RELEASE")
        if any(entry.index > entries[-1].index for entry, _ in record.begun.values()):
            raise record.error(entries[-1], f"acknowledges {where} before the rounds that it is made of", "RELEASE")


def _check_figures(folder: Path, where: str, sealed: Sealed) -> None:
    """Where the manifest repeats epsilon and delta, they are the statement's."""
    statement = read_json((folder / where / "privacy_statement.json").read_bytes())
    for name in ("epsilon", "delta"):
        claimed = sealed.manifest.get(name, statement[name])
        tolerance = TOLERANCE if name == "epsilon" else 0.0
        if isinstance(claimed, bool) or not isinstance(claimed, int | float):
            raise broken(f"{where}/manifest.json", f"has an {name} that is no number", "RELEASE")
        if abs(claimed - statement[name]) > tolerance:
            raise broken(f"{where}/manifest.json", f"claims another {name} than its privacy statement", "RELEASE")
