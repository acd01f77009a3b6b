"""The views of a profile: what it reads of FHIR, said as SQL on FHIR v2 ViewDefinitions, one per type of resource.

They follow from the ports, and from what of the store is read beside the codes that ports name (``port_codings``):
without such codes, the same contract gives the same views. Their digest says what was read. A view keeps what a
permitted port (or the outcome) is about and nothing else; its columns are those of the node's store, so that what a
view gives and what the store holds are read by the same statements. A moment is FHIR's dateTime, of which a year or a
month alone has the two bounds that the store keeps (``connector.fhir.dates_and_times``).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from connector.fhir.codes import Coding
from connector.fhir.condition_status import VERIFICATION_SYSTEM
from connector.views.inclusion import compile_inclusion
from connector.views.port_codings import PortCodings, table_of
from vht_federate.components.contract import Component, Port
from vht_federate.components.digest import ComponentFiles
from vht_federate.signing.canonical import digest_of

__all__ = ["View", "component_views", "derived_views", "view_hash"]

View = dict[str, Any]
_VERIFICATION = f"verificationStatus.coding.where(system = '{VERIFICATION_SYSTEM}').first().code"
_CODES_AT_ONCE = 100  # in one path: a path has an end


def derived_views(
    component: Component, profile: str, columns: Iterable[str] | None = None, codings: PortCodings = PortCodings()
) -> dict[str, View]:
    """By name: the views of ``profile`` where ``columns`` (default: all of its ports) are permitted.

    ``patient``; ``observation``, ``condition``, ``medication_request`` where a port reads them; and, of a profile
    indexed by onset, when anything was recorded: ``recorded_observation``, ``recorded_condition``,
    ``recorded_medication_request``, ``recorded_encounter``.
    """
    chosen = set(component.columns(profile) if columns is None else columns)
    ports = [component.port(name) for name in component.columns(profile) if name in chosen]
    views = {"patient": _patient({port.source.type for port in ports})}
    for name, make in (("observation", _observation), ("condition", _condition), ("medication_request", _medication)):
        read = _codings(ports, name, codings)
        if read:
            views[name] = make(read)
    if component.profile(profile).index == "onset":
        views |= _recorded()
    return {name: _view(f"{name}_view", body) for name, body in views.items()}


def component_views(files: ComponentFiles, profile: str) -> dict[str, View]:
    """``derived_views``, and under ``cohort`` the component's own view of whom the profile is about, checked.

    Raises ViewError as ``compile_inclusion`` does.
    """
    views, cohort = derived_views(files.component(), profile), files.cohort_view(profile)
    if cohort is not None:
        compile_inclusion(cohort)
        views["cohort"] = cohort
    return views


def view_hash(views: Sequence[View]) -> str:
    """sha256, in hex, of the canonical JSON (RFC 8785) of the list of views."""
    return digest_of(list(views))


def _codings(ports: Iterable[Port], table: str, codings: PortCodings) -> list[Coding]:
    """(system, code) of every port that reads ``table``, sorted."""
    return sorted({coding for port in ports if table_of(port.source) == table for coding in codings.of(port.source)})


def _view(name: str, body: View) -> View:
    return {"resourceType": "ViewDefinition", "name": name, "status": "active", "fhirVersion": ["4.0.1"], **body}


def _column(name: str, path: str, type_: str) -> dict[str, str]:
    return {"name": name, "path": path, "type": type_}


_OWN = (
    _column("resource", "getResourceKey()", "string"),
    _column("subject", "subject.getReferenceKey(Patient)", "string"),
)


def _patient(sources: set[str]) -> View:
    columns = [
        _column("subject", "getResourceKey()", "string"),
        _column("active", "active", "boolean"),
        _column("replaced", "link.where(type = 'replaced-by').exists()", "boolean"),
        _column("dead", "deceased.ofType(boolean)", "boolean"),
        _column("deceased_at", "deceased.ofType(dateTime)", "dateTime"),
    ]
    if "age" in sources:
        columns.append(_column("birth_date", "birthDate", "date"))
    if "sex" in sources:
        columns.append(_column("gender", "gender", "code"))
    return {"resource": "Patient", "select": [{"column": columns}]}


def _observation(codings: list[Coding]) -> View:
    """A row for each wanted coding of the code, or of a component's code, and each coding of the value."""
    values = [
        _column("number", "value.ofType(Quantity).value", "decimal"),
        _column("unit", "value.ofType(Quantity).code", "code"),
        _column("truth", "value.ofType(boolean)", "boolean"),
    ]
    answers = {
        "forEachOrNull": "value.ofType(CodeableConcept).coding",
        "column": [_column("value_system", "system", "uri"), _column("value_code", "code", "code")],
    }

    def selected(part: str) -> list[View]:
        return [{"column": [_column("part", part, "integer"), *values]}, answers, _each(codings, "code_system")]

    head = [*_OWN, _column("status", "status", "code"), _column("effective", "effective.ofType(dateTime)", "dateTime")]
    parts = {"forEach": "component", "select": selected("%rowIndex + 1")}
    return {"resource": "Observation", "select": [{"column": head}, {"unionAll": [{"select": selected("0")}, parts]}]}


def _condition(codings: list[Coding]) -> View:
    head = [
        *_OWN,
        _column("verification", _VERIFICATION, "code"),
        _column("onset", "onset.ofType(dateTime)", "dateTime"),
    ]
    return {"resource": "Condition", "select": [{"column": head}, _each(codings, "system")]}


def _medication(codings: list[Coding]) -> View:
    head = [
        *_OWN,
        _column("status", "status", "code"),
        _column("intent", "intent", "code"),
        _column("prohibited", "doNotPerform", "boolean"),
        _column("authored", "authoredOn", "dateTime"),
    ]
    concept = "medication.ofType(CodeableConcept)."
    return {"resource": "MedicationRequest", "select": [{"column": head}, _each(codings, "system", concept)]}


def _each(codings: list[Coding], system: str, place: str = "") -> View:
    """A row for each coding of ``code`` (of the concept at ``place``) that is among ``codings``."""
    columns = [_column(system, "system", "uri"), _column("code", "code", "code")]
    branches = [
        {"forEach": f"{place or 'code.'}coding.where({_among(batch)})", "column": columns}
        for batch in (codings[at : at + _CODES_AT_ONCE] for at in range(0, len(codings), _CODES_AT_ONCE))
    ]
    return branches[0] if len(branches) == 1 else {"unionAll": branches}


def _among(codings: list[Coding]) -> str:
    by_system: dict[str, list[str]] = {}
    for system, code in codings:
        by_system.setdefault(system, []).append(code)
    return " or ".join(
        f"(system = {_text(system)} and ({' or '.join(f'code = {_text(code)}' for code in codes)}))"
        for system, codes in by_system.items()
    )


def _text(value: str) -> str:
    """A FHIRPath string (N1, 4.1) that no code can end."""
    return "'" + "".join(f"\\u{ord(char):04x}" if char in "'\\" or char < " " else char for char in value) + "'"


def _recorded() -> dict[str, View]:
    """When anything was recorded of a patient: what was entered in error is told by its status."""
    status = _column("status", "status", "code")
    verification = _column("verification", _VERIFICATION, "code")
    moments = {
        "Observation": [status, _column("effective", "effective.ofType(dateTime)", "dateTime")],
        "Condition": [verification, _column("onset", "onset.ofType(dateTime)", "dateTime")],
        "MedicationRequest": [status, _column("authored", "authoredOn", "dateTime")],
        "Encounter": [
            status,
            _column("started", "period.start", "dateTime"),
            _column("ended", "period.end", "dateTime"),
        ],
    }
    names = {"MedicationRequest": "medication_request"}
    return {
        f"recorded_{names.get(resource, resource.lower())}": {
            "resource": resource,
            "select": [{"column": [_OWN[1], *columns]}],
        }
        for resource, columns in moments.items()
    }
