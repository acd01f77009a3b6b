"""What a release says of itself in numbers, against what was verified: manifests and statements are the coordinator's
words, and a page that shows them beside "evidence verified" must not show more than the evidence carries."""

import math
from pathlib import Path
from typing import Any

from vht_federate.errors import InputError, PublicationError
from vht_federate.evidence.verify import Verification
from vht_federate.packaging.statement import Share, cohort_share, read_statement
from vht_federate.signing.strict_json import read_json

__all__ = ["check_claims"]

_TOLERANCE = 1e-6


def check_claims(folder: Path, kind: str, verified: Verification) -> None:
    """Epsilon, delta, number of nodes and the cohort's own share, as the manifest repeats them: against the privacy
    statement, which the verification computed again whole, and against the run.

    Raises PublicationError VHT-PUBLICATION-CLAIMS naming the claim. The figures of the evaluation follow from the
    outputs in the bundle, or it does not verify. Scores of quality are not checked: nothing in a bundle lets anybody
    recompute them, and pages say whose figures they are.
    """
    try:
        manifest: dict[str, Any] = read_json((folder / "manifest.json").read_bytes())
        statement = read_statement(read_json((folder / "privacy_statement.json").read_bytes()))
        claimed = (float(manifest["epsilon"]), float(manifest["delta"]), int(manifest["nodes"]))
    except (OSError, ValueError, KeyError, TypeError, InputError) as error:
        raise _false(folder.name, "privacy statement or manifest cannot be read") from error
    if not _same(claimed[0], statement.epsilon) or claimed[1] != statement.delta:
        raise _false(folder.name, "manifest names another epsilon or delta than its privacy statement")
    if claimed[2] != _contributors(kind, verified):
        raise _false(folder.name, "manifest names another number of hospitals than contributed")
    if kind == "cohort":
        _check_share(folder, manifest, statement.release, verified)
    elif statement.release is not None:
        raise _false(folder.name, "privacy statement names a share that only a cohort has")


def _contributors(kind: str, verified: Verification) -> int:
    """Nodes behind a release: of a component those that stayed to the end; of a cohort also a node that was lost after
    it had released its first tables, which are in the sums."""
    run = verified.run
    if kind == "component":
        return len(run.present())
    return sum(("marginals", 1) in run.outputs_of(name) for name in run.nodes)


def _check_share(folder: Path, manifest: dict[str, Any], share: Share | None, verified: Verification) -> None:
    """The manifest repeats the cohort's share, which the verification computed again."""
    plan = verified.study.plan
    if plan.cohort is None or share is None:
        raise _false(folder.name, "privacy statement or plan lacks the cohort's share")
    if not _same(float(manifest.get("cohort_epsilon", math.nan)), cohort_share(plan).epsilon):
        raise _false(folder.name, "share of epsilon is not what the plan's marginals cost")


def _same(first: float, second: float) -> bool:
    return abs(first - second) <= _TOLERANCE  # False for NaN


def _false(where: str, what: str) -> PublicationError:
    return PublicationError(
        f"{where}: {what}",
        code="VHT-PUBLICATION-CLAIMS",
        hint="publish the release as the study wrote it",
    )
