"""HL7's FHIRPath test suite for R4, each expression as a view of one column, and what became of it."""

import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import duckdb
import orjson

from connector.views.sql.compilation import compile_view
from connector.views.sql.execution import locked, run_plan, spooled
from kit.places import SHARED
from vht_federate.errors import ViewError

__all__ = ["SUITE", "Expression", "Outcome", "expressions", "outcomes", "table"]

SUITE = SHARED / "data" / "fhirpath-r4"
DEFAULT_INPUT = "patient-example.xml"
# Inputs that the suite names and the copy beside the project lacks, as far as the expressions inside the subset look.
STAND_INS: dict[str, dict[str, Any]] = {
    "valueset-example-expansion.xml": {"resourceType": "ValueSet", "version": "20150622"},
    "patient-container-example.json": {
        "resourceType": "Patient", "contained": [{"resourceType": "Organization", "id": "1"}],
    },
    "parameters-example-types.xml": {"resourceType": "Parameters"},
    "patient-example-period.xml": {"resourceType": "Patient"},
    "explanationofbenefit-example.json": {"resourceType": "ExplanationOfBenefit"},
    "codesystem-example.xml": {"resourceType": "CodeSystem"},
    "appointment-examplereq.json": {"resourceType": "Appointment"},
    "patient-name-extensions.json": {"resourceType": "Patient"},
}  # fmt: skip
# Why an expression is refused that the suite gives a value, where it is not a function or an operator that is absent.
WHY = {
    "VHT-VIEW-CHOICE": "SQL on FHIR names a type: `value.ofType(Quantity).unit`",
    "VHT-VIEW-CONSTANT": "a view declares its constants; none is given",
    "VHT-VIEW-TYPE": "types are checked before anything runs: no other type is taken for a boolean, elements are not "
    "compared as wholes, a date is no time",
    "VHT-VIEW-ELEMENT": "FHIR defines no such element",
}


@dataclass(frozen=True)
class Expression:
    """``outputs``: (type, text), in their order; ``invalid``: the suite wants an error; ``predicate``: the value is
    whether there is any."""

    group: str
    name: str
    text: str
    input: str
    invalid: bool
    predicate: bool
    outputs: tuple[tuple[str, str], ...]

    @property
    def resource(self) -> dict[str, Any]:
        path = SUITE / (self.input.removesuffix(".xml").removesuffix(".json") + ".json")
        if path.is_file():
            document: dict[str, Any] = json.loads(path.read_bytes())
            return document
        return STAND_INS[self.input]


@dataclass(frozen=True)
class Outcome:
    """``refused`` holds code and message of a refusal; else ``value`` came out, or ``failed`` says how it broke."""

    expression: Expression
    value: list[Any] | None = None
    refused: tuple[str, str] | None = None
    failed: str | None = None

    @property
    def agrees(self) -> bool:
        """The suite's value; where the suite wants an error, none."""
        expression = self.expression
        if self.value is None or expression.invalid:
            return False
        wanted = [_value(type_, text) for type_, text in expression.outputs]
        found = [float(item) if isinstance(item, int) and not isinstance(item, bool) else item for item in self.value]
        return found == wanted or (expression.predicate and wanted == [bool(found)])

    @property
    def outside(self) -> str:
        """What of the expression is outside the subset, as the refusal names it."""
        assert self.refused is not None
        message = re.sub(r"^\S+( at \d+)?: ", "", self.refused[1])
        function = re.fullmatch(r"no function '(\w+)'", message)
        return f"`{function.group(1)}()`" if function else message


def expressions() -> list[Expression]:
    """All of the suite, in its order; none where it is not on this machine."""
    path = SUITE / "tests-fhir-r4.xml"
    if not path.is_file():
        return []
    found = []
    for group in ElementTree.parse(path).getroot().findall("group"):  # noqa: S314 - a file of our own
        for test in group.findall("test"):
            expression = test.find("expression")
            assert expression is not None
            found.append(Expression(
                group.get("name", ""), test.get("name", ""), expression.text or "",
                test.get("inputfile", DEFAULT_INPUT), expression.get("invalid") is not None,
                test.get("predicate") == "true",
                tuple((output.get("type", ""), output.text or "") for output in test.findall("output")),
            ))  # fmt: skip
    return found


def _value(type_: str, text: str) -> Any:
    if type_ == "boolean" or (not type_ and text in {"true", "false"}):
        return text == "true"
    if type_ in {"integer", "decimal"} or (not type_ and re.fullmatch(r"-?\d+(\.\d+)?", text)):
        return float(text)
    return re.sub(r"^@T?", "", text)


def outcomes(asked: list[Expression]) -> list[Outcome]:
    """As ``view check`` and ``view run`` would have each: over a resource without elements, and over its input."""
    found: dict[Expression, Outcome] = {}
    for name in dict.fromkeys(expression.input for expression in asked):
        same = [expression for expression in asked if expression.input == name]
        resource = same[0].resource
        lines = [orjson.dumps({"resourceType": resource["resourceType"]}), orjson.dumps(resource)]
        with spooled(lines) as path, locked([path]) as connection:
            for expression in same:
                found[expression] = _outcome(expression, resource["resourceType"], connection, path)
    return [found[expression] for expression in asked]


def _outcome(expression: Expression, resource_type: str, connection: duckdb.DuckDBPyConnection, path: str) -> Outcome:
    columns = [{"name": "value", "path": expression.text, "collection": True}]
    try:
        plan = compile_view({"resource": resource_type, "select": [{"column": columns}]})
    except ViewError as error:
        return Outcome(expression, refused=(error.code, error.message))
    try:
        _, row = run_plan(plan, connection, [path])
    except Exception as error:  # whatever it is, the view was called valid
        return Outcome(expression, failed=getattr(error, "code", type(error).__name__))
    return Outcome(expression, value=row["value"])


def table(results: Iterable[Outcome]) -> str:
    """The results as they stand in docs/reference/fhir.md."""
    every = list(results)
    inside = [result for result in every if result.refused is None]
    refused = [result for result in every if result.refused is not None]
    wrong = [result for result in refused if result.expression.invalid]
    lines = [
        "| expressions of the suite | |", "|---|---|",
        f"| all | {len(every)} |",
        f"| inside the subset | {len(inside)} |",
        f"| … with the suite's value | {sum(result.agrees for result in inside)} |",
        f"| … with another value | {sum(result.failed is None and not result.agrees for result in inside)} |",
        f"| … called valid, and did not run | {sum(result.failed is not None for result in inside)} |",
        f"| outside, refused by name | {len(refused)} |",
        f"| … where the suite wants an error as well | {len(wrong)} |",
    ]  # fmt: skip
    for result in inside:
        if not result.agrees:
            lines.append(f"| `{result.expression.name}` | differs |")
    other = [result for result in refused if _code(result) in WHY and not result.expression.invalid]
    lines += ["", "| refused, though of functions and operators that are inside | why |", "|---|---|"]
    for code, why in WHY.items():
        names = ", ".join(f"`{result.expression.name}`" for result in other if _code(result) == code)
        lines += [f"| {names} | {why} |"] if names else []
    absent = Counter(result.outside for result in refused if _code(result) not in WHY)
    ranked = sorted(absent.items(), key=lambda one: (-one[1], one[0]))
    functions = [f"{what} {count}" for what, count in ranked if what.startswith("`")]
    lines += ["", "| outside, as the refusal names it | expressions |", "|---|---|"]
    lines += [f"| {_cell(what)} | {count} |" for what, count in ranked if not what.startswith("`")]
    lines += [f"| a function that there is not | {', '.join(functions)} |"]
    return "\n".join(lines)


def _code(result: Outcome) -> str:
    assert result.refused is not None
    return result.refused[0]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
