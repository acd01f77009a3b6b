"""Concept maps: codes of different systems that mean the same, which lie below which; a hospital's own beside them."""

import re
from pathlib import Path

import pytest
from kit.fhir_resources import LOINC, SNOMED

from connector.fhir.codes import CODE_SYSTEMS, CodeMaps, canonical, covers, read_code_maps, shipped_maps
from connector.governance.public_codes import is_public
from vht_federate.errors import InputError

WHO, CM = "http://hl7.org/fhir/sid/icd-10", "http://hl7.org/fhir/sid/icd-10-cm"
GM, OLD_GM = "http://fhir.de/CodeSystem/bfarm/icd-10-gm", "http://fhir.de/CodeSystem/dimdi/icd-10-gm"
ATC, DE_ATC = "http://www.whocc.no/atc", "http://fhir.de/CodeSystem/bfarm/atc"
RXNORM, PZN = "http://www.nlm.nih.gov/research/umls/rxnorm", "http://fhir.de/CodeSystem/ifa/pzn"
LOCAL = "https://hospital.example/codes"
SHIPPED = read_code_maps()


@pytest.mark.parametrize(
    ("coding", "other", "covered"),
    [
        ((GM, "E11"), (GM, "E11"), True),
        ((GM, "E11"), (GM, "E11.9"), True),
        ((GM, "E11"), (GM, "E11.90"), True),
        ((GM, "E11"), (GM, "E1190"), True),
        ((GM, "E11"), (OLD_GM, "E11.90"), True),
        ((GM, "E11"), (GM, "E11.-"), True),
        ((GM, "E11.3"), (GM, "E11.30†"), True),
        ((GM, "E11.9"), (GM, "E11"), False),  # the wider one is no narrower one
        ((GM, "E11.9"), (GM, "E11.30"), False),
        ((GM, "E11"), (GM, "E11.90A"), False),  # excluded, as some write it into the code
        ((GM, "E1"), (GM, "E11.9"), False),  # no category
        ((GM, "E11"), (WHO, "E11.9"), False),  # another system: that is for a map to say
        ((CM, "E11"), (CM, "E11.3211"), True),
        ((CM, "I1A"), (CM, "I1A.0"), True),
        ((ATC, "C09"), (ATC, "C09AA05"), True),
        ((ATC, "C09"), (DE_ATC, "C09AA05"), True),
        ((ATC, "C09AA05"), (ATC, "C09AA"), False),
        ((ATC, "C0"), (ATC, "C09AA05"), False),  # no level of ATC
        ((RXNORM, "316"), (RXNORM, "316049"), False),
        ((SNOMED, "440540"), (SNOMED, "44054006"), False),
        ((PZN, "1234567"), (PZN, "01234567"), True),
        ((LOCAL, "E11"), (LOCAL, "E11.9"), False),  # of a system of one's own nothing is known
    ],
)
def test_a_code_covers_itself_and_those_below_it_in_its_own_system(
    coding: tuple[str, str], other: tuple[str, str], covered: bool
) -> None:
    assert covers(coding, other) is covered


@pytest.mark.parametrize(
    ("wanted", "held", "through"),
    [
        ([(SNOMED, "44054006")], (GM, "E11.90"), ("conditions",)),
        ([(SNOMED, "44054006")], (OLD_GM, "E11.90"), ("conditions",)),
        ([(SNOMED, "44054006")], (WHO, "E11"), ("conditions",)),
        ([(SNOMED, "44054006")], (CM, "E11.65"), ("conditions",)),
        ([(SNOMED, "44054006")], (GM, "E10.90"), None),
        ([(SNOMED, "44054006")], (GM, "E14.90"), None),
        ([(GM, "E11")], (SNOMED, "44054006"), ("conditions",)),
        ([(GM, "E11.9")], (SNOMED, "44054006"), None),  # a part does not bring in the whole
        ([(WHO, "E10"), (WHO, "E11")], (CM, "E11.9"), ("conditions",)),
        ([(WHO, "I10")], (SNOMED, "59621000"), ("conditions",)),
        ([(WHO, "I10")], (SNOMED, "38341003"), None),
        ([(SNOMED, "59621000")], (WHO, "I11.0"), None),
        ([(SNOMED, "38341003")], (WHO, "I11.0"), ("conditions",)),
        ([(SNOMED, "22298006")], (GM, "I21.0"), ("conditions",)),
        ([(SNOMED, "22298006")], (GM, "I25.20"), None),  # an old infarction says nothing of when
        ([(SNOMED, "22298006")], (SNOMED, "401303003"), ("conditions",)),
        ([(SNOMED, "401303003")], (GM, "I21.0"), None),
        ([(SNOMED, "230690007")], (GM, "I63.9"), ("conditions",)),
        ([(SNOMED, "49436004")], (CM, "I48.91"), ("conditions",)),
        ([(SNOMED, "49436004")], (CM, "I48.92"), None),  # flutter
        ([(ATC, "C03AA03")], (RXNORM, "316049"), ("medication",)),
        ([(ATC, "C03AA03")], (RXNORM, "5487"), ("medication",)),
        ([(ATC, "C03")], (RXNORM, "5487"), ("medication",)),
        ([(ATC, "C09AA05")], (SNOMED, "386872004"), ("medication",)),
        ([(RXNORM, "17767")], (DE_ATC, "C08CA01"), ("medication",)),
        ([(ATC, "C07AB02")], (DE_ATC, "C07AB02"), ()),  # by its own system alone
        ([(ATC, "C07AB02")], (RXNORM, "316049"), None),
        ([], (RXNORM, "316049"), None),
    ],
)
def test_a_held_code_is_read_where_it_means_what_is_asked_for(
    wanted: list[tuple[str, str]], held: tuple[str, str], through: tuple[str, ...] | None
) -> None:
    assert SHIPPED.read_for(wanted, [held]).get(held) == through
    if through is not None:
        assert SHIPPED.may_widen(wanted)


def test_what_no_map_widens_needs_no_look_at_the_data() -> None:
    assert not SHIPPED.may_widen([(LOINC, "8480-6")])
    assert not SHIPPED.may_widen([])
    assert not CodeMaps().may_widen([(SNOMED, "44054006")])


def test_every_shipped_map_says_where_it_comes_from_and_under_which_licence() -> None:
    assert [code_map.name for code_map in shipped_maps()] == ["conditions", "medication"]
    for code_map in shipped_maps():
        assert code_map.licence
        assert all(source.startswith("http") for source in code_map.source)
        assert re.fullmatch("[0-9a-f]{64}", SHIPPED.digests[code_map.name])
        for name, concept in code_map.concept.items():
            assert concept.source, name
            for system, code in concept.members:
                assert is_public(system, code), (name, code)  # its form, and SNOMED's check digit


def test_no_shipped_code_names_two_concepts_as_a_whole() -> None:
    wholes = [
        canonical((CODE_SYSTEMS[key].addresses[0], codes[0]))
        for code_map in shipped_maps()
        for concept in code_map.concept.values()
        for key, codes in concept.codes.items()
        if len(codes) == 1
    ]
    assert len(wholes) == len(set(wholes))


@pytest.mark.parametrize("system", sorted(address for one in CODE_SYSTEMS.values() for address in one.addresses))
def test_every_system_that_is_read_is_public_by_the_form_of_its_codes(system: str) -> None:
    codes = {"loinc": "8480-6", "snomed": "44054006", "rxnorm": "5487", "atc": "C09AA05", "pzn": "01126111"}
    key, _ = canonical((system, ""))
    assert is_public(system, codes.get(key, "E11.9"))
    assert not is_public(system, "Zebedee")


# --- a hospital's own -------------------------------------------------------------------------------------------------

PHARMACY = f"system,code,means_system,means_code\n{PZN},1126111,{ATC},C07AB02\n\n{LOCAL},HCT25,{RXNORM},5487\n"
LABORATORY = f"""
title = "Laboratory"
version = "3"
licence = "ours"
source = ["the laboratory's handbook"]
[[mapping]]
system = "{LOCAL}"
codes = ["CHOL", "CHOL-S"]
means = "{LOINC}|2093-3"
[concept.diabetes]
title = "Diabetes by our own system"
codes = {{ icd-10-gm = ["E11"], atc = ["A10"] }}
"""


def own(tmp_path: Path, **files: str) -> CodeMaps:
    for name, content in files.items():
        stem, _, ending = name.rpartition("_")
        (tmp_path / f"{stem}.{ending}").write_text(content)
    return read_code_maps(tmp_path)


def test_a_hospitals_own_codes_mean_what_its_map_says_and_what_follows(tmp_path: Path) -> None:
    maps = own(tmp_path, pharmacy_csv=PHARMACY, laboratory_toml=LABORATORY)
    assert set(maps.digests) == {"conditions", "medication", "pharmacy", "laboratory"}
    assert maps.read_for([(ATC, "C07AB02")], [(PZN, "01126111")]) == {(PZN, "01126111"): ("pharmacy",)}
    assert maps.read_for([(ATC, "C07")], [(PZN, "1126111")]) == {(PZN, "1126111"): ("pharmacy",)}
    assert maps.read_for([(ATC, "C03AA03")], [(LOCAL, "HCT25")]) == {(LOCAL, "HCT25"): ("pharmacy", "medication")}
    assert maps.read_for([(ATC, "C09AA05")], [(LOCAL, "HCT25")]) == {}
    assert maps.read_for([(LOINC, "2093-3")], [(LOCAL, "CHOL-S"), (LOCAL, "HDL")]) == {
        (LOCAL, "CHOL-S"): ("laboratory",)
    }
    assert maps.read_for([(GM, "E11")], [(ATC, "A10BA02")]) == {(ATC, "A10BA02"): ("laboratory",)}
    assert maps.know((PZN, "1126111"))
    assert not SHIPPED.know((PZN, "1126111"))


def test_a_changed_map_is_read_anew_and_has_another_digest(tmp_path: Path) -> None:
    before = own(tmp_path, pharmacy_csv=PHARMACY)
    after = own(tmp_path, pharmacy_csv=PHARMACY.replace("C07AB02", "C09AA05"))
    assert before.digests["pharmacy"] != after.digests["pharmacy"]
    assert after.read_for([(ATC, "C07AB02")], [(PZN, "01126111")]) == {}


def test_without_a_folder_the_shipped_maps_are_in_force(tmp_path: Path) -> None:
    assert read_code_maps(tmp_path / "none") == SHIPPED


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "code,system\nZebedee,b\n", "head line"),
        ("a.csv", PHARMACY + f"{LOCAL},Zebedee,{ATC}\n", "line 5 has 3 cells, not 4"),
        ("a.csv", PHARMACY + f"{LOCAL},,{ATC},C03\n", "line 5 does not fit at codes"),
        ("a.csv", PHARMACY + f"{LOCAL},Zebedee,{ATC},\n", "line 5 does not fit at means"),
        ("a.csv", "system,code,means_system,means_code\n", "a concept or a mapping"),
        ("a.csv", 'system,code,means_system,means_code\n"Zebedee', "not CSV"),
        ("a.toml", "title = Zebedee", "is not TOML"),
        ("a.toml", LABORATORY.replace("licence", "license"), "licence"),
        ("a.toml", LABORATORY.replace('"E11"', '"E11.90A"'), "each of its form"),
        ("a.toml", LABORATORY.replace("icd-10-gm", "icd-9"), "a system is one of"),
        ("a.toml", LABORATORY.replace("[[mapping]]", 'name = "Zebedee"\n[[mapping]]'), "not for the file to say"),
        ("conditions.toml", LABORATORY, "another map has this name"),
        ("Laboratory of ours.toml", LABORATORY, "name"),
        ("notes.txt", "Zebedee", "no TOML or CSV file"),
    ],
)
def test_a_file_that_is_no_map_is_named_with_its_place_and_no_value(
    tmp_path: Path, name: str, content: str, says: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as caught:
        read_code_maps(tmp_path)
    assert caught.value.code == "VHT-INPUT-CODE-MAP"
    assert says in caught.value.message
    assert name.rpartition(".")[0] in caught.value.message
    assert "Zebedee" not in caught.value.message
    assert caught.value.hint
