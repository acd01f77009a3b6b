"""The released component and cohort: their own seals, the nodes' receipts, and the privacy they claim."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vht_federate.domain.permit import Permit
from vht_federate.domain.study import StudyRequest
from vht_federate.errors import VerificationError
from vht_federate.evidence.finding import TOLERANCE, broken
from vht_federate.evidence.run_check import RunClaims
from vht_federate.evidence.visit_record import VisitRecord
from vht_federate.packaging.cohort import verify_cohort
from vht_federate.packaging.component import verify_package
from vht_federate.signing.keys import PublicKey
from vht_federate.signing.signed_manifest import Sealed
from vht_federate.signing.strict_json import read_json

__all__ = ["Spent", "check_releases", "release_folders"]

Spent = Mapping[str, Mapping[str, float]]  # node -> population -> epsilon
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
    spent: Spent,
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
        _check_statement(folder, where, request, run, spent)
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


def _check_statement(folder: Path, where: str, request: StudyRequest, run: RunClaims, spent: Spent) -> None:
    """The statement's epsilon is the most that any patient at any node paid, as the logs say.

    A lost node may have begun a round whose output nobody received: the statement may count it or not.
    """
    file = f"{where}/privacy_statement.json"
    try:
        statement = read_json((folder / file).read_bytes())
        epsilon, delta = float(statement["epsilon"]), float(statement["delta"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise broken(file, "is not a privacy statement", "RELEASE") from error
    present = {name: max(spent[name].values()) for name in spent}
    low = max((present[name] for name in run.present()), default=0.0)
    high = max(present.values(), default=0.0)
    if not low - TOLERANCE <= epsilon <= high + TOLERANCE:
        raise broken(file, f"claims epsilon {epsilon:.6f}; the nodes' logs say {high:.6f}", "RELEASE")
    if delta != request.plan.delta:
        raise broken(file, f"claims delta {delta:g}; the plan says {request.plan.delta:g}", "RELEASE")
    nodes = statement.get("nodes")
    for name, claimed in (nodes if isinstance(nodes, dict) else {}).items():
        _check_node(file, name, claimed, run, spent)


def _check_node(file: str, name: str, claimed: Any, run: RunClaims, spent: Spent) -> None:
    if name not in run.nodes:
        raise broken(file, f"speaks of {name}, which took no part", "RELEASE")
    epsilons = claimed.get("epsilon") if isinstance(claimed, dict) else None
    if name not in run.present() or epsilons is None:
        return
    if not isinstance(epsilons, dict) or any(
        abs(float(epsilons.get(population, -1.0)) - spent[name][population]) > TOLERANCE for population in spent[name]
    ):
        raise broken(file, f"claims another epsilon for {name} than its log", "RELEASE")
