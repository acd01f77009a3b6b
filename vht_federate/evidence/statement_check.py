"""The privacy statement of a release, computed anew from the signed plan and the nodes' logs, and compared whole.

A statement is the coordinator's file: unit, neighbours, noise, populations, trust model, limits and nodes are worth no
more than its epsilon unless all of it follows from what nodes and data user signed. Every schema is held to that, each
in its own form. What nobody offline can compute again stands in ``coordinator_says``; of schema 1, which had no such
part, it is held to what the software of that time could say.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.plan import StudyPlan
from vht_federate.errors import InputError
from vht_federate.evidence.finding import TOLERANCE, broken
from vht_federate.evidence.ledger_check import Compose
from vht_federate.evidence.run_check import RunClaims
from vht_federate.evidence.visit_record import VisitRecord
from vht_federate.packaging.statement import cohort_share, own_words, read_statement
from vht_federate.privacy.statement import recomputed_statement
from vht_federate.signing.strict_json import read_json

__all__ = ["Spends", "check_statement", "possible_spends"]

Events = tuple[PrivacyEvent, ...]
Spends = Mapping[str, Sequence[Events]]
"""By node: what it may have drawn for this run, as far as the evidence tells."""


def possible_spends(
    run: RunClaims,
    plan: StudyPlan,
    study_id: str,
    visits: Mapping[str, VisitRecord],
    records: Mapping[str, Mapping[str, VisitRecord]],
) -> dict[str, list[Events]]:
    """A node that took part to the end drew what its log says. Of one that was lost, the statement counts at least the
    rounds whose outputs the run used, and may count, in their order, those that it began besides.

    ``visits``: the records of this run; ``records``: all that the logs hold, by node and visit.
    """
    spends: dict[str, list[Events]] = {}
    for name, node in run.nodes.items():
        begun = _begun(visits, records, name, study_id)
        if node.lost is None:
            spends[name] = [tuple(event for events in begun.values() for event in events)]
            continue
        used = run.outputs_of(name)
        spends[name] = [tuple(event for call in used for event in plan.events_of(*call))]
        calls = list(begun)
        for count in range(len(calls) + 1):
            if set(used) <= set(calls[:count]):
                spends[name].append(tuple(event for call in calls[:count] for event in begun[call]))
    return spends


def _begun(
    visits: Mapping[str, VisitRecord], records: Mapping[str, Mapping[str, VisitRecord]], name: str, study_id: str
) -> dict[tuple[str, int], Events]:
    """Calls in the order of the log. A lost node may name a visit that its log does not hold: then all of the study."""
    if name in visits:
        own = [visits[name]]
    else:
        of_node = records.get(name, {}).values()
        own = [record for record in of_node if record.requested and record.requested.study_id == study_id]
    return {call: begun.events for record in own for call, (_, begun) in record.begun.items()}


def check_statement(
    folder: Path,
    where: str,
    kind: str,
    plan: StudyPlan,
    engines: Mapping[str, Mapping[str, str]],
    spends: Spends,
    compose: Compose,
) -> dict[str, Any]:
    """The statement of the release in ``where``, a folder of the bundle ``folder``; what is left of it is the
    coordinator's own words.

    ``engines``: by node, which engine its first output of the training names. Raises VerificationError
    VHT-VERIFY-RELEASE naming the member that is not what it should be.
    """
    file = f"{where}/privacy_statement.json"
    try:
        statement = read_json((folder / file).read_bytes())
        typed = read_statement(statement)
        own = own_words(statement)
    except (OSError, ValueError, RecursionError, TypeError) as error:
        raise broken(file, "is not a privacy statement", "RELEASE") from error
    except InputError as error:
        raise broken(file, error.message, "RELEASE") from error
    ran = {name: _ran(file, name, node.events, spends) for name, node in typed.nodes.items()}
    for name, possible in spends.items():
        if name not in ran and () not in possible:
            raise broken(file, f"leaves out {name}, which spent for this run", "RELEASE")
    expected = recomputed_statement(plan, ran, engines, schema=typed.schema_version, compose=compose)
    if kind == "cohort":
        expected["release"] = cohort_share(plan).model_dump(mode="json")
    claimed = _spelt(statement, own)
    if (difference := _difference(claimed, expected, ())) is not None:
        raise broken(file, f"{difference}: not what plan, logs and outputs give", "RELEASE")
    return own


def _ran(file: str, name: str, claimed: Events, spends: Spends) -> Events:
    if name not in spends:
        raise broken(file, f"speaks of {name}, which took no part", "RELEASE")
    if not any(Counter(claimed) == Counter(possible) for possible in spends[name]):
        raise broken(file, f"claims other events of {name} than its log, or without one the run, gives", "RELEASE")
    return claimed


def _spelt(statement: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Without the coordinator's own words and a share that is none; events with every field, as written now."""
    claimed: dict[str, Any] = {name: value for name, value in statement.items() if name not in own}
    if claimed.get("release", ...) is None:
        del claimed["release"]
    if "accountant.library" in own:
        claimed["accountant"] = {name: value for name, value in claimed["accountant"].items() if name != "library"}
    claimed["nodes"] = {name: {**node, "events": _whole(node["events"])} for name, node in claimed["nodes"].items()}
    claimed["mechanism"] = {**claimed["mechanism"], "planned": _whole(claimed["mechanism"]["planned"])}
    return claimed


def _whole(events: Sequence[Any]) -> list[dict[str, Any]]:
    try:
        return [PrivacyEvent.model_validate(event).model_dump(mode="json") for event in events]
    except ValidationError:
        return list(events)


def _difference(claimed: Any, expected: Any, place: tuple[str, ...]) -> str | None:
    """The first place where two JSON values differ; figures of epsilon may by rounding."""
    if isinstance(claimed, Mapping) and isinstance(expected, Mapping):
        for name in sorted(claimed.keys() | expected.keys()):
            if name not in claimed:
                return f"lacks {'.'.join((*place, name))}"
            if name not in expected:
                return f"has {'.'.join((*place, name))} of its own"
            if (found := _difference(claimed[name], expected[name], (*place, name))) is not None:
                return found
        return None
    if isinstance(claimed, list) and isinstance(expected, list) and len(claimed) == len(expected):
        pairs = enumerate(zip(claimed, expected, strict=True))
        found_in = (_difference(first, second, (*place, str(index))) for index, (first, second) in pairs)
        return next((found for found in found_in if found is not None), None)
    if _is_number(claimed) and _is_number(expected):
        tolerance = TOLERANCE if any(name.startswith("epsilon") for name in place) else 0.0
        if abs(claimed - expected) <= tolerance:
            return None
    elif type(claimed) is type(expected) and claimed == expected:
        return None
    return f"claims {'.'.join(place)} {_shown(claimed)}; it is {_shown(expected)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = f"{value:g}" if _is_number(value) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
