"""Whose permit view answers, for how long, and what a search may find: no more than what is shown."""

import base64
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from kit.fhir_api_client import Program, serving
from kit.fhir_resources import observation, patient, write
from kit.hospital import COLUMNS, Hospital, write_fhir

from connector.fhir.subject_keys import subject_key
from connector.fhir_api.page_cursors import Cursor, read_cursor, written
from vht_federate.domain.permit import Permit
from vht_federate.errors import CohortError, InputError, NotFoundError

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def permit_of(program: Program) -> Permit:
    client = program.node.fhir_api.clients.get(program.id)
    assert client is not None
    return program.node.fhir_api.clients.permit_of(client)


def following(answer: Any) -> str:
    """Path and query of the next page."""
    [link] = [entry["url"] for entry in answer.json()["link"] if entry["relation"] == "next"]
    return f"{urlsplit(link).path}?{urlsplit(link).query}"


def test_a_permit_of_the_same_id_and_other_content_has_another_face(stocked: Hospital) -> None:
    with serving(stocked) as program:
        permit_views, permit = program.node.fhir_api.permit_views, permit_of(program)
        wide = permit_views.view_for(permit)
        narrow = permit_views.view_for(permit.model_copy(update={"columns": ("male",)}))
        assert (wide.scope.birth_date, narrow.scope.birth_date) == (True, False)
        assert permit_views.view_for(permit) is wide
        with pytest.raises(CohortError):
            permit_views.view_for(permit.model_copy(update={"minimum_cohort": 41}))


def test_a_cursor_says_what_was_written_until_it_ends() -> None:
    cursor = Cursor(7, 300, NOW + timedelta(minutes=15))
    assert read_cursor(written(cursor), NOW) == cursor
    with pytest.raises(NotFoundError) as ended:
        read_cursor(written(cursor), cursor.ends)
    assert ended.value.code == "VHT-INPUT-GONE"


def _flipped(text: str) -> str:
    raw = bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    raw[5] ^= 1
    return base64.urlsafe_b64encode(bytes(raw)).decode().rstrip("=")


def test_a_cursor_that_this_process_has_not_written_is_refused() -> None:
    own = written(Cursor(7, 300, NOW + timedelta(minutes=15)))
    plain = base64.urlsafe_b64encode(b"6:0").decode()
    for forged in (_flipped(own), own[:-4], f"{own}AAAA", "", "é", "A" * 67, plain):
        with pytest.raises(InputError) as refused:
            read_cursor(forged, NOW)
        assert refused.value.code == "VHT-INPUT-SEARCH"


def test_pages_go_on_over_one_state_without_those_who_are_gone(stocked: Hospital) -> None:
    with serving(stocked) as program:
        token = program.token()
        everybody = {resource["id"] for resource in program.search("Patient", token)}
        first = program.get("Patient?_count=5", token)
        first_ids = {entry["resource"]["id"] for entry in first.json()["entry"]}
        program.node.ingest(write_fhir(stocked.root / "fewer", patients=30), replace=True)
        remaining_ids = {resource["id"] for resource in program.search("Patient", token)}
        next_page = program.call("GET", following(first).replace("_count=5", "_count=100"), token)
        assert next_page.json()["total"] == len(remaining_ids) == 30
        assert {entry["resource"]["id"] for entry in next_page.json()["entry"]} <= remaining_ids
        assert everybody - remaining_ids
        assert first_ids <= everybody
        generation = program.node.fhir_api.permit_views.view_for(permit_of(program)).generation.number
        forged = base64.urlsafe_b64encode(f"{generation - 1}:0".encode()).decode().rstrip("=")
        assert program.get(f"Patient?_page={forged}", token).status_code == 400


def test_no_page_gives_its_search_more_time(stocked: Hospital) -> None:
    with serving(stocked) as program:
        token = program.token()
        first = following(program.get("Patient?_count=5", token))
        second = following(program.call("GET", first, token))
        ends = [read_cursor(parse_qs(urlsplit(link).query)["_page"][0], NOW).ends for link in (first, second)]
        assert ends[0] == ends[1]


# --- what is told, and so found -------------------------------------------------------------------------------------


PARTIAL = {
    "2010": date(2010, 7, 1),
    "2010-02": date(2010, 2, 15),
    "2009-12": date(2009, 12, 15),
    "2009-12-31T23:59:59Z": date(2009, 7, 1),  # as stores of an older make keep a year, or a December
}


def test_partial_dates_are_told_and_found_by_what_they_say(stocked: Hospital) -> None:
    lines = [
        resource
        for number, partial_date in enumerate(PARTIAL, 50)
        for resource in (
            patient(number, birthDate=f"{PARTIAL[partial_date]:%Y-%m}"),
            observation(f"o{number}", number, effectiveDateTime=partial_date),
        )
    ]
    with stocked.open(start=False) as node:
        node.ingest(write(stocked.root / "partial", "data.ndjson", lines), replace=True)
    with serving(stocked, minimum_cohort=1) as program:
        token, permit_view = program.token(), program.node.fhir_api.permit_views.view_for(permit_of(program))
        key = program.node.secret.subject_key
        observations = {resource["subject"]["reference"]: resource for resource in program.search("Observation", token)}
        born = {f"Patient/{resource['id']}": resource["birthDate"] for resource in program.search("Patient", token)}
        for number, partial_date in enumerate(PARTIAL, 50):
            subject = subject_key(key, f"p{number}")
            name = permit_view.deidentifier.patient(subject)
            moved = PARTIAL[partial_date] - permit_view.deidentifier.shift(subject)
            effective = observations[f"Patient/{name}"]["effectiveDateTime"]
            assert effective == moved.isoformat()[: 7 if len(partial_date) == 7 else 4]
            born_on = PARTIAL[partial_date].replace(day=15) - permit_view.deidentifier.shift(subject)
            assert born[f"Patient/{name}"] == f"{born_on.year}", "kept as its middle, and so told by the year"
            rules = _rules(int(effective)) if len(effective) == 4 else _rules_of_month(moved)
            query = f"Observation?patient={name}&date"
            assert {rule: len(program.search(f"{query}={rule}", token)) for rule in rules} == rules, partial_date


def _rules_of_month(day: date) -> dict[str, int]:
    """Searches by date, and how many they find of one Observation of that day's month."""
    month, first = f"{day:%Y-%m}", day.replace(day=1)
    before, after = first - timedelta(days=1), first + timedelta(days=31)
    return {
        month: 1, f"{day.year}": 1, f"{before:%Y-%m}": 0, f"{after:%Y-%m}": 0, f"{month}-15": 0,
        f"ge{month}": 1, f"gt{month}": 0, f"lt{month}": 0, f"le{month}": 1,
        f"gt{month}-15": 1, f"lt{month}-15": 1, f"gt{before}": 1, f"sa{before}": 1, f"lt{first}": 0,
    }  # fmt: skip


def _rules(year: int) -> dict[str, int]:
    """Searches by date, and how many they find of one Observation of that year."""
    days = [f"{year}-{month:02d}-{day}" for month, day in ((1, 11), (6, 28), (12, 28))]
    return {
        f"{year}": 1, f"{year - 1}": 0, f"{year + 1}": 0,
        f"ge{year}": 1, f"gt{year}": 0, f"lt{year}": 0, f"le{year}": 1,
        **dict.fromkeys(days, 0), **dict.fromkeys([f"lt{iso_date}" for iso_date in days], 1),
        **dict.fromkeys([f"gt{iso_date}" for iso_date in days], 1),
    }  # fmt: skip


def test_a_search_by_date_finds_what_shows_a_date_and_nothing_else(stocked: Hospital) -> None:
    """Around 90 years ago, where the true day and the told day differ in what they would decide."""
    today = datetime.now(UTC).date()
    days = [today.replace(year=today.year - 90, day=min(today.day, 28)) + timedelta(days=7 * k) for k in range(60)]
    lines = [
        resource
        for number, day in enumerate(days, 50)
        for resource in (patient(number), observation(f"o{number}", number, effectiveDateTime=f"{day}T08:00:00Z"))
    ]
    with stocked.open(start=False) as node:
        node.ingest(write(stocked.root / "old", "data.ndjson", lines), replace=True)
    with serving(stocked, minimum_cohort=1) as program:
        token = program.token()
        everything = program.search("Observation", token)
        found = program.search("Observation?date=ge1800", token)
    dated = {resource["id"] for resource in everything if "effectiveDateTime" in resource}
    assert {resource["id"] for resource in found} == dated
    assert 0 < len(dated) < len(everything) == len(days)


def test_encounters_are_not_found_by_codes_that_are_withheld(stocked: Hospital) -> None:
    def seen(ident: str, class_: str, **kind: str) -> dict[str, Any]:
        return {"resourceType": "Encounter", "id": ident, "status": "finished", "class": {"code": class_},
                "type": [{"coding": [kind]}], "subject": {"reference": "Patient/p1"},
                "period": {"start": "2010-01-01"}}  # fmt: skip

    local, snomed = "http://hospital.example/ward", "http://snomed.info/sct"
    with stocked.open(start=False) as node:
        encounters = [seen("e1", "AMB", system=snomed, code="162673000"), seen("e2", "WARD7", system=local, code="psy"),
                      seen("e3", "IMP", code="psy"), seen("e4", "IMP", system=snomed, code="162673001"),
                      {**seen("e5", "", system=local, code="psy"), "class": {"display": "ward"}},
                      seen("e6", "AMB", system=local, code="psy")]  # fmt: skip
        encounters[-1]["class"]["system"] = local
        encounters[-1]["type"].append({"coding": [{"system": snomed, "code": "162673000"}]})
        node.ingest(write(stocked.root / "seen", "data.ndjson", encounters))
    with serving(stocked, columns=(*COLUMNS, "fhir:Encounter")) as program:
        token = program.token()
        classes = [encounter["class"] for encounter in program.search("Encounter", token)]
        assert sorted(coding.get("code", "masked") for coding in classes) == ["AMB", "IMP", "IMP", *["masked"] * 3]
        expected_counts = {"type=162673000": 2, f"type={snomed}|162673000": 2, "class=AMB": 1, "class=IMP": 2,
                           "class=AMB&type=162673000": 1, "class=IMP&type=162673000": 0, f"type={snomed}|": 2,
                           "type=psy": 0, f"type={local}|psy": 0, f"type={local}|": 0, "type=|psy": 0, "class=WARD7": 0,
                           "type=162673001": 0, "type=psy,162673000": 2}  # fmt: skip
        assert {query: len(program.search(f"Encounter?{query}", token)) for query in expected_counts} == expected_counts


def test_the_order_of_answers_is_the_permits_own_and_ties_no_patient_to_one_of_another(
    stocked: Hospital,
) -> None:
    orders = []
    for permit in ("permit-1", "permit-2"):
        with serving(stocked, permit_id=permit) as program:
            token = program.token()
            searched = {
                kind: program.search(f"{kind}?_count=7", token) for kind in ("Patient", "Observation", "Condition")
            }
            manifest = program.await_export(program.export(token=token), token).json()
            exported = program.download(manifest, token)
            permit_view = program.node.fhir_api.permit_views.view_for(permit_of(program))
        assert {kind: exported[kind] for kind in searched} == searched
        for kind in ("Observation", "Condition"):
            people = [resource["subject"]["reference"] for resource in searched[kind]]
            assert people == sorted(people)
        names = dict(
            zip(
                permit_view.visible_patients["name"].to_pylist(),
                permit_view.visible_patients["subject"].to_pylist(),
                strict=True,
            )
        )
        orders.append([names[resource["id"]] for resource in searched["Patient"]])
    assert len(orders[0]) == 40
    assert sorted(orders[0]) == sorted(orders[1])
    assert sum(first == second for first, second in zip(*orders, strict=True)) < 20  # by chance about one
