"""A view that does not end is ended, wherever it runs; one that ends in time is none the wiser."""

import json
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from kit.commands import exit_and_envelope

from connector.views import run
from connector.views.sql.compilation import compile_view
from connector.views.sql.execution import locked, run_plan, spooled
from connector.views.sql.limits import TimeLimit
from connector.views.sql.ndjson_sources import execute
from vht_federate.errors import ViewError

NAMES = [{"family": f"n{number}", "given": ["a", "b"]} for number in range(60)]
PATIENT = {"resourceType": "Patient", "id": "p1", "name": NAMES}
PLAIN = {"resource": "Patient", "select": [{"column": [{"name": "id", "path": "id"}]}]}


def multiplying(siblings: int) -> dict[str, Any]:
    """60 ** siblings rows of one patient: small to say, endless to run."""
    selects = [{"forEach": "name", "column": [{"name": f"c{number}", "path": "family"}]} for number in range(siblings)]
    return {"resource": "Patient", "select": selects}


def test_a_view_that_multiplies_without_end_is_ended() -> None:
    with pytest.raises(ViewError) as caught:
        run(multiplying(20), [PATIENT], max_rows=10**15, time_limit_s=0.3)
    assert caught.value.code == "VHT-VIEW-TIME"


def test_a_view_without_a_row_to_show_is_ended_too() -> None:
    view = multiplying(8)
    view["select"][-1]["forEach"] = "name.where(family = 'nobody')"
    with pytest.raises(ViewError) as caught:
        run(view, [PATIENT], time_limit_s=0.3)
    assert caught.value.code == "VHT-VIEW-TIME"


def test_files_are_under_one_limit_whichever_way_they_are_read(tmp_path: Path) -> None:
    bad = b'{"resourceType": "Patient", "id": 5, "name": "x"}\n'
    for content in (b"", bad):
        (tmp_path / "Patient.ndjson").write_bytes(json.dumps(PATIENT).encode() + b"\n" + content)
        with pytest.raises(ViewError) as caught:
            execute(
                compile_view(multiplying(20)), [tmp_path / "Patient.ndjson"],
                lambda batches: sum(batch.num_rows for batch in batches), skip_bad_lines=True, time_limit_s=0.4,
            )  # fmt: skip
        assert caught.value.code == "VHT-VIEW-TIME"


def test_the_command_says_so_and_leaves_no_half_written_rows(tmp_path: Path) -> None:
    (tmp_path / "Patient.ndjson").write_text(json.dumps(PATIENT) + "\n")
    view = tmp_path / "view.json"
    view.write_text(json.dumps(multiplying(20)))
    out = tmp_path / "rows.parquet"
    code, envelope = exit_and_envelope("view", "run", view, "--data", tmp_path, "--out", out, "--time-limit", "0.3")
    assert (code, envelope["error"]["code"]) == (2, "VHT-VIEW-TIME")
    assert {path.name for path in tmp_path.iterdir()} == {"Patient.ndjson", "view.json"}


def test_in_time_nothing_is_different_and_no_watcher_stays() -> None:
    assert run(PLAIN, [PATIENT], time_limit_s=600.0) == [{"id": "p1"}] == run(PLAIN, [PATIENT], time_limit_s=None)
    assert not [thread for thread in threading.enumerate() if thread.name == "vht-view-limit"]


def test_a_limit_that_is_over_begins_nothing() -> None:
    now = [0.0]
    limit = TimeLimit(5.0, lambda: now[0])
    limit.check()
    now[0] = 6.0
    with pytest.raises(ViewError):
        limit.check()
    line = json.dumps(PATIENT).encode()
    with spooled([line]) as path, pytest.raises(ViewError), locked([path], limit=limit) as connection:
        run_plan(compile_view(PLAIN), connection, [path])


def wide(columns: int, path: str, **more: Any) -> dict[str, Any]:
    definitions = [{"name": f"c{number}", "path": path, **more} for number in range(columns)]
    return {"resource": "Patient", "select": [{"column": definitions}]}


@pytest.mark.parametrize(
    "view",
    [
        wide(500, f"id & '{'x' * 100}'"),
        wide(400, "name.exists()"),
        wide(20, "name.given", collection=True),
        wide(10, "name", type="HumanName", collection=True),
    ],
    ids=["text", "booleans", "lists", "elements"],
)
def test_rows_that_fill_the_memory_are_refused_before_they_do(view: dict[str, Any]) -> None:
    people = [PATIENT | {"id": f"p{number}"} for number in range(100)]
    tracemalloc.start()
    try:
        with pytest.raises(ViewError, match="more than 2 MiB") as caught:
            run(view, people, max_bytes=2 << 20)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.code == "VHT-VIEW-LIMIT"
    assert len(run(view, people)) == len(people)


def test_a_view_of_ordinary_rows_is_far_from_the_limit() -> None:
    people = [PATIENT | {"id": f"p{number}"} for number in range(5000)]
    assert len(run(wide(4, "id"), people, max_bytes=10 << 20)) == len(people)
