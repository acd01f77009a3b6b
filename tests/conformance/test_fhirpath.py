"""HL7's FHIRPath suite for R4: inside the subset of SQL on FHIR its values, outside a refusal by name.

The results stand in docs/reference/fhir.md. ``VHT_WRITE_TABLES=1`` before pytest writes them anew.
"""

import os
import re

import pytest
from kit.fhirpath_suite import SUITE, Expression, Outcome, expressions, outcomes, table
from kit.places import ROOT

DOCS = ROOT / "docs" / "reference" / "fhir.md"
BEGIN, END = "<!-- fhirpath suite: written by tests/conformance/test_fhirpath.py -->\n", "<!-- end -->"
INSIDE = 247
"""How many expressions were inside the subset when it was first measured: none of them may fall out."""

EXPRESSIONS = expressions()


@pytest.fixture(scope="module")
def results() -> list[Outcome]:
    if not EXPRESSIONS:
        if os.environ.get("CI") == "true":
            pytest.fail(f"the FHIRPath suite is missing: {SUITE}")
        pytest.skip("HL7's FHIRPath suite (../shared/data/fhirpath-r4) is not on this machine")
    return outcomes(EXPRESSIONS)


def names(found: list[Outcome]) -> list[str]:
    return [f"{result.expression.name}: {result.expression.text.strip()}" for result in found]


def test_the_suite_is_whole(results: list[Outcome]) -> None:
    assert len(results) == 935
    assert len({(result.expression.group, result.expression.name) for result in results}) > 900


def test_what_is_inside_the_subset_gives_the_suites_value(results: list[Outcome]) -> None:
    inside = [result for result in results if result.refused is None]
    assert names([result for result in inside if not result.agrees]) == []
    assert len(inside) >= INSIDE


def test_nothing_that_check_calls_valid_fails_to_run(results: list[Outcome]) -> None:
    assert names([result for result in results if result.failed is not None]) == []


def test_what_is_outside_is_refused_by_name(results: list[Outcome]) -> None:
    vague = re.compile(r"expected the end|expected a name|no FHIRPath expression continues like this")
    refused = [result for result in results if result.refused is not None]
    assert {result.refused[0] for result in refused if result.refused} <= {
        f"VHT-VIEW-{code}" for code in ("CHOICE", "CONSTANT", "ELEMENT", "FUNCTION", "SYNTAX", "TYPE")
    }
    assert names([result for result in refused if vague.search(result.outside)]) == []


def test_an_error_that_the_suite_wants_is_a_refusal(results: list[Outcome]) -> None:
    invalid = [result for result in results if result.expression.invalid]
    assert len(invalid) > 20
    assert names([result for result in invalid if result.refused is None]) == []


def test_the_table_in_the_reference_is_that_of_this_run(results: list[Outcome]) -> None:
    before, rest = DOCS.read_text().split(BEGIN)
    _, after = rest.split(END)
    written = f"{before}{BEGIN}{table(results)}\n{END}{after}"
    if os.environ.get("VHT_WRITE_TABLES") == "1":
        DOCS.write_text(written)
    assert DOCS.read_text() == written, "run: VHT_WRITE_TABLES=1 pytest tests/conformance/test_fhirpath.py"


def made(text: str, *outputs: tuple[str, str]) -> Outcome:
    [result] = outcomes([Expression("group", "name", text, "patient-name-extensions.json", False, False, outputs)])
    return result


def test_the_account_can_tell_agreement_from_difference_and_from_refusal() -> None:
    """Holds where the suite is not on this machine, too."""
    assert made("1 + 1", ("integer", "2")).agrees
    assert not made("1 + 1", ("integer", "3")).agrees
    assert not made("1 + 1").agrees
    refused = made("name.select(given)")
    assert (refused.value, refused.outside) == (None, "`select()`")
    assert made("9223372036854775807 + 1").failed == "VHT-VIEW-RANGE"
    shown = table([made("1", ("integer", "1")), made("1", ("integer", "2")), refused])
    assert "| inside the subset | 2 |" in shown
    assert "| … with the suite's value | 1 |" in shown
    assert "| `name` | differs |" in shown
