"""Decimals of a view are exact in steps of 1e-8; one that is only read is as fast as before."""

from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal, localcontext
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from connector.views import explain, run
from connector.views.sql.compilation import compile_view
from connector.views.sql.execution import locked, run_plan, spooled

VALUE = "value.ofType(Quantity).value"
STEP, RANGE = Decimal("1e-8"), Decimal(10) ** 20


def observation(number: Any) -> dict[str, Any]:
    parts = [{"code": {"text": "a"}, "valueQuantity": {"value": value}} for value in (0.1, 0.2)]
    return {"resourceType": "Observation", "id": "o", "valueQuantity": {"value": number}, "component": parts}


def cells(paths: list[str], number: Any = 0.3) -> list[Any]:
    columns = [{"name": f"c{at}", "path": path} for at, path in enumerate(paths)]
    return list(run({"resource": "Observation", "select": [{"column": columns}]}, [observation(number)])[0].values())


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("1.8 - 1.2 = 0.6", True),
        ("2.2 mod 1.8 = 0.4", True),
        ("0.3 div 0.1", 3),
        ("5.5 mod 0.7", 0.6),
        ("-5.5 mod 0.7", -0.6),
        ("-5.5 div 0.7", -7),
        ("0.1 + 0.2 > 0.3", False),
        ("0.1 + 0.2 >= 0.3", True),
        ("0.1 * 3 = 0.3", True),
        ("1 / 3", 0.33333333),
        ("-2 / 3", -0.66666667),
        ("1.0 / 0", None),
        ("1.0 mod 0", None),
        ("1.0 div 0.0", None),
        ("9007199254740993 = 9007199254740992.0", False),
        ("1 + 9007199254740992 = 9007199254740992.0", False),
        ("9223372036854775807 div 10", 922337203685477580),
        ("1234567890987654321.1 + 0.1 = 1234567890987654321.2", True),
        ("1234567890987654321.1 = 1234567890987654321.2", False),
        ("99999999999999999999.0 + 1", None),  # beyond FHIRPath's range
        ("10000000000.0 * 10000000000.0", None),
        ("1.5 div 0.00000001", 150000000),
        ("99999999999.0 div 0.00000001", None),
        (f"component[0].{VALUE} + component[1].{VALUE} = {VALUE}", True),
        (f"({VALUE} - component[1].{VALUE}).first()", 0.1),
        (f"-({VALUE} + 0.1)", -0.4),
        (f"-{VALUE} < -0.2", True),
        (f"component.{VALUE}.first() * 3 = {VALUE}", True),
        (f"component.where({VALUE} + 0.1 = 0.3).{VALUE}", 0.2),
        (f"({VALUE} + 0.2).lowBoundary()", 0.45),
        (f"{VALUE} = 0.3", True),
        (f"{VALUE} * 10 = 3", True),
    ],
)
def test_decimals_are_exact(path: str, expected: Any) -> None:
    assert cells([path]) == [expected]


def test_what_the_range_does_not_hold_is_read_compared_and_no_operand() -> None:
    assert cells([VALUE, f"{VALUE} > 1", f"{VALUE} + 1"], 1e25) == [1e25, True, None]
    assert cells([f"{VALUE} + 0.1 = 1234567890.22", f"{VALUE} + 0.1"], 1234567890.12) == [True, 1234567890.22]


def test_a_decimal_that_is_only_read_or_compared_stays_a_double() -> None:
    columns = [{"name": "a", "path": VALUE}, {"name": "b", "path": f"{VALUE} > 0.2"}]
    sql = explain({"resource": "Observation", "select": [{"column": columns}]})
    assert '"value" DOUBLE' in sql
    assert "DECIMAL" not in sql


_decimals = st.decimals(min_value=-(10**9), max_value=10**9, places=4).filter(lambda number: number == number + 0)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(left=_decimals, right=_decimals)
def test_arithmetic_is_that_of_decimals(left: Decimal, right: Decimal) -> None:
    def written(number: Decimal) -> str:
        return f"({number:f})"

    with localcontext() as context:
        context.prec = 60
        expected: dict[str, Decimal | None] = {"+": left + right, "-": left - right, "*": left * right}
        whole = (left / right).to_integral_value(ROUND_DOWN) if right else None
        expected |= {"/": left / right if right else None, "div": whole}
        expected["mod"] = left - right * whole if whole is not None else None
        for sign, value in expected.items():
            fits = value is not None and abs(value) < RANGE
            expected[sign] = value.quantize(STEP, ROUND_HALF_UP) if value is not None and fits else None
    got = cells([f"{written(left)} {sign} {written(right)}" for sign in expected])
    assert got == [None if value is None else float(value) for value in expected.values()]


_written = st.decimals(min_value=-(10**6), max_value=10**6, places=10) | st.decimals(
    min_value=-1, max_value=1, places=9
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(numbers=st.lists(_written, min_size=1, max_size=30))
def test_what_is_read_becomes_the_decimal_that_was_written(numbers: list[Decimal]) -> None:
    read = [float(f"{number:f}") for number in numbers]
    halves = [float(f"{number.quantize(STEP):f}5") for number in numbers]  # half a step: rounded away from zero
    columns = [{"name": "cell", "path": f"{VALUE} + 0"}]
    view = {"resource": "Observation", "select": [{"column": columns}]}
    rows = run(view, [observation(number) for number in [*read, *halves]])
    expected = [float(Decimal(repr(number)).quantize(STEP, ROUND_HALF_UP)) for number in [*read, *halves]]
    assert [row["cell"] for row in rows] == expected


def test_arithmetic_of_a_column_takes_no_error_to_be_empty() -> None:
    """``tolerant`` or not, a decimal that leaves its range costs what any other does."""
    view = {"resource": "Observation", "select": [{"column": [{"name": "cell", "path": f"{VALUE} * {VALUE} / 0.1"}]}]}
    for tolerant in (False, True):
        plan = compile_view(view, tolerant=tolerant)
        line = b'{"resourceType": "Observation", "valueQuantity": {"value": 1e15}}'
        with spooled([line] * 3) as path, locked([path]) as connection:
            assert run_plan(plan, connection, [path]) == [{"cell": None}] * 3
