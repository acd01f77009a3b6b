"""Paths as trees of SQL: brackets by rule, a variable replaced and nothing like it, length known before any text."""

import itertools
import json
import re
from typing import Any

import pytest

from connector.views import explain
from connector.views.sql import building as sql
from connector.views.sql import macros
from connector.views.sql.compilation import compile_view
from connector.views.sql.execution import locked, run_plan, spooled
from connector.views.sql.expressions import Expression, Lambda, Parameter, render
from connector.views.sql.substitution import substitute

AT_ONCE = 60  # columns of a view
PATIENT = {
    "resourceType": "Patient",
    "id": "a",
    "active": True,
    "deceasedBoolean": False,
    "multipleBirthInteger": 3,
    "birthDate": "1970-06-01",
    "gender": "other",
    "name": [{"family": "f", "given": ["x", "y"]}, {"family": "g", "given": ["z"]}],
    "maritalStatus": {"text": "m"},
}


def selecting(paths: list[str], resource: str = "Patient") -> dict[str, Any]:
    columns = [{"name": f"c{number}", "path": path} for number, path in enumerate(paths)]
    return {"resource": resource, "select": [{"column": columns}]}


def cells(paths: list[str], resource: dict[str, Any] = PATIENT, *, tolerant: bool = False) -> list[Any]:
    values: list[Any] = []
    with spooled([json.dumps(resource).encode()]) as file, locked([file]) as connection:
        for start in range(0, len(paths), AT_ONCE):
            view = selecting(paths[start : start + AT_ONCE], resource["resourceType"])
            [row] = run_plan(compile_view(view, tolerant=tolerant), connection, [file])
            values += row.values()
    return values


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("(active xor deceased.ofType(boolean)) = true", True),  # did not compile: shared/cases/01-xor-compared
        ("true = (active xor deceased.ofType(boolean))", True),
        ("(active xor active) != (active implies deceased.ofType(boolean))", False),
        ("(active = active) = (active = active)", True),
        ("(1 < 2) = (2 < 1)", False),
        ("1 - (2 - 3)", 2),
        ("-(1 + 2) * 3", -9),
        ("-(-(1))", 1),
    ],
)
def test_what_brackets_hold_together_stays_together(path: str, expected: Any) -> None:
    assert cells([path]) == [expected]


LOGIC, ORDER, ARITHMETIC = ("and", "or", "xor", "implies"), ("=", "!=", "<", "<=", ">", ">="), ("+", "-", "*")
Form = tuple[str, tuple[str, ...], str]
FORMS: list[Form] = [
    *((f"{{}} {operator} {{}}", ("boolean", "boolean"), "boolean") for operator in (*LOGIC, "=", "!=")),
    *((f"{{}} {operator} {{}}", ("integer", "integer"), "boolean") for operator in ORDER),
    *((f"{{}} {operator} {{}}", ("string", "string"), "boolean") for operator in ORDER),
    *((f"{{}} {operator} {{}}", ("date", "date"), "boolean") for operator in ORDER),
    *((f"{{}} {operator} {{}}", ("integer", "integer"), "integer") for operator in (*ARITHMETIC, "div", "mod")),
    *((f"{{}} {operator} {{}}", ("decimal", "integer"), "decimal") for operator in (*ARITHMETIC, "/", "mod")),
    *((f"{{}} {operator} {{}}", ("string", "string"), "string") for operator in ("+", "&")),
    *((f"{{}}.{function}()", ("boolean",), "boolean") for function in ("not", "exists", "empty", "first")),
    ("-{}", ("integer",), "integer"), ("-{}", ("decimal",), "decimal"), ("{}.count()", ("string",), "integer"),
    ("{}.lowBoundary()", ("decimal",), "decimal"), ("{}.highBoundary()", ("date",), "date"),
    ("{}.where($this)", ("boolean",), "boolean"), ("{}[{}]", ("string", "integer"), "string"),
    ("{}.join()", ("string",), "string"),
]  # fmt: skip
ON_LISTS: list[Form] = [
    ("where({}).id", ("boolean",), "string"), ("where({}).exists()", ("boolean",), "boolean"),
    ("item.linkId[{}]", ("integer",), "string"), ("item.linkId = {}", ("string",), "boolean"),
    ("{} != item.linkId.first()", ("string",), "boolean"), ("item.required = {}", ("boolean",), "boolean"),
]  # fmt: skip
LITERALS = {"decimal": "2.5", "date": "@1970-06"}
ITEM = LITERALS | {"boolean": "required", "integer": "maxLength", "string": "linkId"}
FIRST = LITERALS | {type_: f"item.first().{name}" for type_, name in ITEM.items() if type_ not in LITERALS}
ITEMS = [{"linkId": "b", "required": True, "maxLength": 3}, {"linkId": "c"}]
QUESTIONNAIRE = {"resourceType": "Questionnaire", "id": "a", "item": ITEMS}
GROWING = {("{} + {}", "string"), ("{} & {}", "string"), ("{}.join()", "string")}


def written(form: Form, leaves: dict[str, str], position: int = -1, operand: str = "") -> str:
    operands = [leaves[type_] for type_ in form[1]]
    if operand:
        operands[position] = operand
    return form[0].format(*operands)


def as_literal(value: Any, type_: str) -> str:
    if value is None:
        return {"boolean": "true", "integer": "1", "string": "''"}.get(type_, LITERALS.get(type_, "")) + ".where(false)"
    if type_ in {"string", "date"}:
        return f"'{value}'" if type_ == "string" else f"@{value}"
    return str(value).lower() if type_ == "boolean" else f"({value})"


def nestings(forms: list[Form]) -> list[tuple[Form, int, Form]]:
    """Every form as every operand of every other that takes its type."""
    return [
        (outer, position, inner)
        for outer, inner in itertools.product(forms, forms)
        for position, wanted in enumerate(outer[1])
        if inner[2] == wanted
    ]


def together(nesting: tuple[Form, int, Form], leaves: dict[str, str]) -> str:
    outer, position, inner = nesting
    return written(outer, leaves, position, f"({written(inner, leaves)})")


def test_every_operator_within_every_other_is_as_if_its_value_stood_there() -> None:
    forms = FORMS + ON_LISTS
    values = dict(zip(forms, cells([written(form, FIRST) for form in forms], QUESTIONNAIRE), strict=True))
    nested = nestings(forms)
    assert len(nested) > 800
    stepwise = [
        written(outer, FIRST, position, as_literal(values[inner], inner[2])) for outer, position, inner in nested
    ]
    paths = [together(nesting, FIRST) for nesting in nested]
    for path, got, expected in zip(paths, cells(paths, QUESTIONNAIRE), cells(stepwise, QUESTIONNAIRE), strict=True):
        assert got == expected, path


@pytest.mark.parametrize("items", ["item", "item.first()"])
def test_every_operator_within_every_other_is_the_same_in_a_criterion(items: str) -> None:
    nested = nestings(FORMS)[::3]
    expected = cells([together(nesting, FIRST) for nesting in nested], QUESTIONNAIRE)
    criteria = [
        f"({together(nesting, ITEM)})" + (".empty()" if value is None else f" = {as_literal(value, nesting[0][2])}")
        for nesting, value in zip(nested, expected, strict=True)
    ]
    met = cells([f"{items}.exists(linkId = 'b' and {criterion})" for criterion in criteria], QUESTIONNAIRE)
    assert [criterion for criterion, is_met in zip(criteria, met, strict=True) if is_met is not True] == []


def test_every_operator_within_every_other_runs_where_nothing_may_stop_the_query() -> None:
    quiet = [form for form in FORMS + ON_LISTS if (form[0], form[2]) not in GROWING]
    paths = [together(nesting, FIRST) for nesting in nestings(quiet)]
    assert len(cells(paths, {"resourceType": "Questionnaire"}, tolerant=True)) == len(paths)


def test_only_the_variable_itself_is_replaced() -> None:
    item = Parameter(name="_x1_")
    inside = sql.mapping(sql.column("list"), item, item)  # a lambda of the same variable
    expression = sql.call("f", item, sql.field(item, "_x1_"), sql.column("_x1_"), sql.text("_x1_"), inside)
    changed = substitute(expression, item, sql.field(sql.column("a"), "b"))
    assert render(changed) == (
        """f("a"."b", "a"."b"."_x1_", "_x1_", '_x1_', list_transform("list", lambda _x1_: _x1_))"""
    )
    assert render(expression).startswith("f(_x1_, _x1_.")


def test_what_is_shared_stays_shared_and_what_is_untouched_stays_the_same() -> None:
    item, other = Parameter(name="_x1_"), sql.call("g", sql.column("c"))
    shared = sql.infix("+", item, other)
    changed = substitute(sql.infix("=", shared, shared), item, sql.number(1))
    assert changed.operands[0] is changed.operands[1]
    assert changed.operands[0].operands[1] is other
    assert substitute(other, item, sql.number(1)) is other


def doubled(times: int) -> Expression:
    expression: Expression = sql.macro("vht_low_time", sql.column("a"))
    for _ in range(times):
        expression = sql.infix("+", expression, expression)
    return expression


def test_length_and_calls_are_those_of_the_text_and_known_without_it() -> None:
    everything = sql.query(
        "SELECT ", sql.case(sql.negation(doubled(3)), sql.cast(sql.text("it's"), "DATE"), sql.number(-1)), " AS x, ",
        sql.subscript(sql.infix("||", sql.text("a"), sql.text("b")), -1), ", ", sql.field(sql.call("f"), 'q"'), ", ",
        sql.macro_call("vht_low_time", Parameter(name="p"), sql.call("g"), sql.absent(sql.present(sql.NULL))),
    )  # fmt: skip
    text = render(everything)
    assert (len(text), text.count("vht_")) == (everything.length, everything.macro_calls)
    assert doubled(200).length > 2**200 == doubled(200).macro_calls
    assert "operands" not in repr(doubled(200))
    item = Parameter(name="_x1_")
    assert substitute(sql.infix("=", doubled(200), item), item, sql.NULL).length > 2**200


def test_a_macro_writes_and_computes_each_operand_once() -> None:
    item = Parameter(name="_x1_")
    assert render(sql.macro_call("m", item, sql.column("a"), sql.text("b"))) == """m("a", 'b')"""
    held = sql.macro_call("m", item, sql.call("f", sql.column("a")), sql.text("b"))
    assert render(held) == ("""list_transform([{'o0': f("a"), 'o1': 'b'}], lambda _x1_: m(_x1_."o0", _x1_."o1"))[1]""")


def test_macros_are_found_in_the_tree_with_those_that_they_call() -> None:
    for name, body in macros._MACROS.items():
        assert set(macros._USES.get(name, ())) == set(re.findall(r"\bvht_[a-z_]+", body)), name
    view = selecting(["birthDate < @2000", "'vht_low_time'"])
    created = [re.findall(r"MACRO (\w+)", statement)[0] for statement in compile_view(view).macros]
    assert set(created) == {
        "vht_date_before", "vht_start", "vht_stop", "vht_point", "vht_low_date", "vht_high_date",
        "vht_zoned",
    }  # fmt: skip
    assert created.index("vht_point") < created.index("vht_start") < created.index("vht_date_before")
    assert compile_view(selecting(["'vht_low_time'"])).weight() < 2_000


@pytest.mark.parametrize(
    ("resource", "path", "expected"),
    [
        ("Observation", "subject.reference", '"subject"."reference"'),
        ("Observation", "value.ofType(Quantity).value > 120", '"valueQuantity"."value" > CAST(120 AS BIGINT)'),
        ("Patient", "maritalStatus.where(text = 'm').text",
         """(CASE WHEN "maritalStatus"."text" = 'm' THEN "maritalStatus" END)."text\""""),
        ("Patient", "managingOrganization.getReferenceKey()",
         """vht_reference_key("managingOrganization"."reference", '[A-Z][A-Za-z]+', true)"""),
    ],
)  # fmt: skip
def test_a_chain_stands_where_its_variable_stood(resource: str, path: str, expected: str) -> None:
    view = {"resource": resource, "select": [{"column": [{"name": "cell", "path": path}]}]}
    assert f'SELECT\n  {expected} AS "cell"\nFROM' in explain(view)


def test_a_lambda_stands_in_no_brackets() -> None:
    item = Parameter(name="_x1_")
    body = sql.infix("AND", sql.infix("=", item, sql.number(1)), sql.TRUE)
    assert render(Lambda(parameter=item, operands=(body,))) == "lambda _x1_: (_x1_ = 1) AND true"
