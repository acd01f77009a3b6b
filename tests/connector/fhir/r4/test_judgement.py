"""What R4 demands is judged of every line: the quick way, the careful way and FHIR's own models agree."""

import random
from pathlib import Path
from typing import Any

import orjson
import pytest
from kit.fhir_resources import KEY, condition, observation, patient, prescription, write
from kit.places import SHARED
from kit.r4_resources import FAULTS, faulty, resource

from connector.fhir import ingest
from connector.fhir.r4.conformance import REASONS, first_fault, has_duplicate_key
from connector.fhir.r4.primitives import is_spelled
from connector.fhir.r4.strict import Strict
from connector.fhir.validation import available, findings

TYPES = ("Patient", "Observation", "Condition", "MedicationRequest", "Encounter", "Medication")
EXAMPLES = 400
# Of these the models are lax: they take null for absent, empty objects, lists and uris, and any code.
LAX = frozenset({"null", "empty", "code", "format"})

pytestmark = pytest.mark.skipif(not available(), reason="fhir.resources is not installed")


@pytest.fixture(scope="module")
def strict() -> Strict:
    return Strict(TYPES)


@pytest.mark.parametrize("kind", TYPES)
def test_what_keeps_r4_passes_both_ways_and_the_models(strict: Strict, kind: str) -> None:
    draw, quick = random.Random(kind), 0
    for _ in range(EXAMPLES):
        valid = resource(draw, kind)
        content = orjson.dumps(valid)
        assert first_fault(valid) is None, content
        assert findings(kind, content) == (), content
        quick += strict.passes(content)
    assert quick > EXAMPLES * 0.7, "most of what is right is passed quickly"


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_is_found_by_the_careful_way_never_passed_by_the_quick_and_the_models_agree(
    strict: Strict, fault: str
) -> None:
    draw, tried, seen_by_models = random.Random(fault), 0, 0
    while tried < EXAMPLES:
        kind = draw.choice(TYPES)
        broken = faulty(draw, resource(draw, kind), fault)
        if broken is None:
            continue
        tried += 1
        content = orjson.dumps(broken)
        judged = first_fault(broken)
        assert judged is not None, content
        assert judged.reason in REASONS
        assert not strict.passes(content), content
        seen_by_models += findings(kind, content) != ()
    assert seen_by_models == EXAMPLES if fault not in LAX else seen_by_models < EXAMPLES


def test_real_lines_pass_the_quick_way_alone(strict: Strict) -> None:
    """The export of 615 patients (``../shared``), where it is: no line needs the careful way."""
    archive = SHARED / "data" / "gsd_r4_ndjson.tgz"
    if not archive.exists():
        pytest.skip("the public export is not beside the project")
    import tarfile

    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            kind = Path(member.name).name.split(".")[0]
            stream = tar.extractfile(member) if kind in TYPES else None
            if stream is not None:
                assert all(strict.passes(line) for line in stream.read().splitlines()), kind


@pytest.mark.parametrize(
    ("type_name", "value", "right"),
    [
        ("dateTime", "2016-12-31T23:59:60Z", True),
        ("instant", "2016-12-31T23:59:60.5+14:00", True),
        ("instant", "2016-12-31T23:59:59+15:00", False),
        ("dateTime", "2016-12-31T23:59:59+14:30", False),
        ("dateTime", "2016-12-31T24:00:00Z", False),
        ("dateTime", "2016-02-30T10:00:00Z", False),
        ("dateTime", "2016-W01-1T10:00:00Z", False),
        ("dateTime", "2016-12-31t10:00:00z", False),
        ("dateTime", "2016-12-31T10:00:00+0100", False),
        ("dateTime", "2016-12-31T10:00Z", False),
        ("date", "0000-01-01", False),
        ("time", "23:59:60", True),
        ("code", "a  b", False),
        ("code", "a b", True),
        ("base64Binary", "AAA", False),
        ("base64Binary", " AAAA" * 40, True),
        ("string", "a\x01", False),
        ("uuid", "urn:uuid:c757873d", False),
        ("oid", "urn:oid:1.02", False),
        ("positiveInt", 0, False),
        ("integer", 2**31, False),
    ],
)
def test_each_primitive_is_spelled_as_r4_says(type_name: str, value: Any, right: bool) -> None:
    assert is_spelled(type_name, value) is right


@pytest.mark.parametrize(
    ("content", "twice"),
    [
        (b'{"a":1,"a":1}', True),
        (b'{"a":{"b":1,"c":2,"b":1}}', True),
        (b'{"a":[{"b":1},{"b":1}]}', False),
        (b'{"a":1,"\\u0061":2}', True),
    ],
)
def test_a_second_member_of_one_name_is_found_however_it_is_spelled(content: bytes, twice: bool) -> None:
    assert has_duplicate_key(content) is twice


def _line(resource: dict[str, Any], old: bytes, new: bytes) -> bytes:
    content = orjson.dumps(resource)
    assert content.count(old) == 1
    return content.replace(old, new)


CODED = {"system": "http://loinc.org", "code": "8480-6"}
REFUSED: list[tuple[Any, str, str]] = [
    (observation("o", code=None), "missing", "Observation.code"),
    (observation("o", component=[{"valueString": "a"}]), "missing", "Observation.component.code"),
    ({"resourceType": "Encounter", "id": "e", "status": "finished", "subject": {"reference": "Patient/p1"}},
     "missing", "Encounter.class"),
    (observation("o", valueString="a"), "choice", "Observation.value[x]"),
    (condition("c", "1", "2010", onsetAge={"value": 3}), "choice", "Condition.onset[x]"),
    (prescription("m", "C09", "2010", medicationReference={"reference": "#m"}), "choice",
     "MedicationRequest.medication[x]"),
    (_line(observation("o"), b'"final"', b'"final","status":"final"'), "duplicate-key", "Observation"),
    (_line(observation("o"), b'"8480-6"', b'"8480-6","code":"x"'), "duplicate-key", "Observation"),
    (_line(observation("o"), b'"value":140', b'"value":140,"\\u0076alue":14'), "duplicate-key", "Observation"),
    (_line(observation("o"), b'"final"', b"null"), "null", "Observation.status"),
    (patient(1, name=[{"given": ["a"]}]) | {"name": [{"given": [None]}]}, "null", "Patient.name.given"),
    (observation("o", dataAbsentReason={"text": "a"}), "invariant", "Observation.dataAbsentReason"),
    (observation("o", component=[{"code": {"coding": [CODED]}}]), "invariant", "Observation.component.code"),
    (observation("o", note=[]), "empty", "Observation.note"),
    (observation("o", method={}), "empty", "Observation.method"),
    (observation("o", foo=1), "unknown-element", "Observation"),
    (patient(1, contact=[{"gender": "m"}]), "code", "Patient.contact.gender"),
    (observation("o", issued="2010-01-01"), "format", "Observation.issued"),
    (patient(1, contained=[{"resourceType": "Organization", "id": "x", "foo": 1}]), "unknown-element",
     "Patient.contained"),
]  # fmt: skip


def test_each_breach_of_r4_is_set_aside_with_its_own_reason_and_path(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "a.ndjson", [line for line, _, _ in REFUSED])
    report = ingest(folder, tmp_path / "store", node_key=KEY, dataset="d")
    from connector.fhir import Store

    generation = Store(tmp_path / "store").current()
    assert generation is not None
    listed = [(entry["line"], entry["reason"], entry["path"]) for entry in generation.quarantine()]
    assert listed == [(number, reason, path) for number, (_, reason, path) in enumerate(REFUSED, 1)]
    assert (report.accepted, report.quarantined) == (0, len(REFUSED))


TAKEN: list[dict[str, Any]] = [
    patient(1, birthDate=None, _birthDate={"extension": [{"url": "urn:x", "valueCode": "unknown"}]}),
    patient(2, name=[{"given": [None, "Ann"], "_given": [{"extension": [{"url": "urn:x", "valueCode": "u"}]}, None]}]),
    observation("o1", component=[{"code": {"text": "part"}}]),
    observation("o2", valueQuantity=None, dataAbsentReason={"text": "none"}),
    observation("o3", contained=[{"resourceType": "Organization", "id": "x", "name": "y"}]),
    observation("o4", note=[{"text": 'a "quoted" word, ü and {}'}]),
    observation("o5", issued="2016-12-31T23:59:60Z"),
]


def test_what_r4_allows_is_taken_though_it_is_rare(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "a.ndjson", TAKEN)
    report = ingest(folder, tmp_path / "store", node_key=KEY, dataset="d")
    assert (report.accepted, report.reasons) == (len(TAKEN), {})
