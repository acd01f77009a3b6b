"""Whoever changes a bundle is noticed, and the message says where.

First an outsider, who cannot sign: any byte, any file. Then the coordinator, who can: it signs the manifest anew, and
the nodes' own signatures have to hold.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from kit.altered_logs import (
    Export,
    cheaper,
    cut,
    cut_with_heads,
    drop,
    drop_and_renumber,
    duplicate,
    extra_field,
    hide,
    no_heads,
    other_head,
    other_leaf,
    other_time,
    quieter,
    swap,
    swap_and_renumber,
)
from kit.tampered_bundles import FILE, NODE, failure, resealed

from vht_federate.evidence.log import EvidenceLog
from vht_federate.evidence.verify import verify_bundle
from vht_federate.packaging import component
from vht_federate.signing.canonical import canonical_bytes
from vht_federate.signing.keys import SigningKey
from vht_federate.signing.signed_manifest import seal
from vht_federate.testing.rehearsal import Rehearsal


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    with Rehearsal(tmp_path_factory.mktemp("rehearsal")) as rehearsal:
        rehearsal.play()
        rehearsal.early = rehearsal.logs[NODE].export("permit-other")  # type: ignore[attr-defined]
        rehearsal.bundle(rehearsal.root / "bundle")
        yield rehearsal


@pytest.fixture
def bundle(played: Rehearsal, tmp_path: Path) -> Path:
    return Path(shutil.copytree(played.root / "bundle", tmp_path / "bundle"))


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- an outsider --------------------------------------------------------------------------------------------------


def test_the_untouched_bundle_holds(bundle: Path, played: Rehearsal) -> None:
    verification = verify_bundle(bundle, played.trust)
    assert verification.run.present() == ["hospital-1", "hospital-2", "hospital-3"]
    assert len(verification.trace) > 50
    assert verification.notes == ()
    assert set(verification.releases) == {"component", "cohort"}


def test_a_flipped_bit_anywhere_in_any_file_names_that_file(bundle: Path, played: Rehearsal) -> None:
    rng = random.Random(7)
    names = files_of(bundle)
    folders = {"nodes", "receipts", "status", "outputs", "release", "cohort"}
    assert {name.split("/")[0] for name in names} >= {*folders, "permit.jwt"}
    for name in names:
        original = (bundle / name).read_bytes()
        last = len(original) - 1
        for offset in {0, last, last - 1, last // 2, *(rng.randint(0, last) for _ in range(6))}:
            changed = bytearray(original)
            changed[offset] ^= 1 << rng.randint(0, 7)
            (bundle / name).write_bytes(bytes(changed))
            assert name in failure(bundle, played).message, (name, offset)
        (bundle / name).write_bytes(original)
    verify_bundle(bundle, played.trust)


@pytest.mark.parametrize("spoil", [lambda data: data + b"\n", lambda data: data[:-1], lambda _: b""])
def test_a_longer_shorter_or_empty_file_is_named(
    spoil: Callable[[bytes], bytes], bundle: Path, played: Rehearsal
) -> None:
    for name in files_of(bundle):
        original = (bundle / name).read_bytes()
        (bundle / name).write_bytes(spoil(original))
        assert name in failure(bundle, played).message
        (bundle / name).write_bytes(original)


def test_json_written_with_other_spaces_counts_as_changed(bundle: Path, played: Rehearsal) -> None:
    for name in [name for name in files_of(bundle) if name.endswith(".json")]:
        original = (bundle / name).read_bytes()
        try:
            value = json.loads(original)
        except ValueError:
            continue
        (bundle / name).write_text(json.dumps(value, indent=3))
        assert name in failure(bundle, played).message
        (bundle / name).write_bytes(original)


def test_a_missing_an_unknown_and_a_linked_file_are_named(bundle: Path, played: Rehearsal, tmp_path: Path) -> None:
    for name in files_of(bundle):
        original = (bundle / name).rename(tmp_path / "kept")
        assert Path(name).name in failure(bundle, played).message
        (bundle / name).symlink_to(original)
        assert name in failure(bundle, played).message
        (bundle / name).unlink()
        original.rename(bundle / name)
    for name in ("note.txt", "nodes/hospital-9.json", "release/cardio-risk/extra.py", "status/.hidden"):
        (bundle / name).write_text("{}")
        assert name in failure(bundle, played).message
        (bundle / name).unlink()
    (bundle / "nodes" / "more").symlink_to(tmp_path, target_is_directory=True)
    assert "nodes/more" in failure(bundle, played).message
    (bundle / "nodes" / "more").unlink()
    verify_bundle(bundle, played.trust)


def test_two_swapped_files_are_named(bundle: Path, played: Rehearsal) -> None:
    first, second = bundle / "nodes/hospital-1.json", bundle / "nodes/hospital-2.json"
    swapped = first.read_bytes(), second.read_bytes()
    second.write_bytes(swapped[0])
    first.write_bytes(swapped[1])
    assert "nodes/hospital-1.json" in failure(bundle, played).message


def test_a_manifest_recomputed_without_the_coordinators_key_is_noticed(bundle: Path, played: Rehearsal) -> None:
    (bundle / "run.json").write_text((bundle / "run.json").read_text().replace("study-rehearsal", "study-forged"))
    resealed(bundle, played, key=SigningKey.generate())
    assert "manifest.jws" in failure(bundle, played).message


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path, played: Rehearsal) -> None:
    failure(tmp_path, played)
    failure(tmp_path / "absent", played)


# --- the coordinator ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        drop, drop_and_renumber, swap, swap_and_renumber, cut, cut_with_heads, cheaper, quieter, other_time, hide,
        duplicate, other_leaf, other_head, no_heads, extra_field,
    ],
)  # fmt: skip
def test_a_coordinator_that_signs_an_altered_log_is_caught(
    spoil: Callable[[Export], str], bundle: Path, played: Rehearsal
) -> None:
    export = json.loads((bundle / FILE).read_bytes())
    place = spoil(export)
    (bundle / FILE).write_bytes(canonical_bytes(export))
    error = failure(resealed(bundle, played), played)
    assert FILE in error.message
    assert place in error.message


def rewritten(export: Export, folder: Path, key: SigningKey) -> Export:
    """A whole new log with the same entries, one cheaper, signed by ``key``."""
    clock = iter(item.get("time", "") for item in export["entries"])

    def tick() -> datetime:
        return datetime.fromisoformat(next(clock) or "2026-06-01T12:00:00+00:00")

    with EvidenceLog(folder, key, export["node"], tick) as log:
        for item in export["entries"]:
            permit = item.get("permit_id", "permit-other")
            log.append(
                item.get("kind", "permit.checked"), item.get("body", {}), permit_id=permit, visit=item.get("visit")
            )
        return log.export(export["permit_id"])


def test_a_log_signed_anew_with_another_key_is_caught(bundle: Path, played: Rehearsal, tmp_path: Path) -> None:
    stranger = SigningKey.generate()
    export = rewritten(json.loads((bundle / FILE).read_bytes()), tmp_path / "log", stranger)
    (bundle / FILE).write_bytes(canonical_bytes(export))
    error = failure(resealed(bundle, played), played)
    assert error.code == "VHT-VERIFY-LOG-KEY"
    assert FILE in error.message
    export["public_key"] = played.node_keys[NODE].public.jwk()
    (bundle / FILE).write_bytes(canonical_bytes(export))
    assert FILE in failure(resealed(bundle, played), played).message


def test_a_log_rewritten_by_the_node_itself_breaks_its_receipts(
    bundle: Path, played: Rehearsal, tmp_path: Path
) -> None:
    export = rewritten(json.loads((bundle / FILE).read_bytes()), tmp_path / "log", played.node_keys[NODE])
    (bundle / FILE).write_bytes(canonical_bytes(export))
    error = failure(resealed(bundle, played), played)
    assert error.code == "VHT-VERIFY-RECEIPT"
    assert f"receipts/{NODE}.json receipt 0" in error.message
    assert f"{FILE} entry" in error.message


def test_another_permits_export_of_the_same_node_is_caught(bundle: Path, played: Rehearsal) -> None:
    (bundle / FILE).write_bytes(canonical_bytes(played.early))  # type: ignore[attr-defined]
    assert FILE in failure(resealed(bundle, played), played).message


def test_a_log_left_out_is_missed_and_one_claimed_lost_is_not_counted(bundle: Path, played: Rehearsal) -> None:
    (bundle / FILE).unlink()
    assert FILE in failure(resealed(bundle, played), played).message


RunChange = Callable[[dict[str, Any]], None]


def _other_output(run: dict[str, Any]) -> None:
    run["rounds"][0]["outputs"][NODE] = "00" * 32


def _forgotten_output(run: dict[str, Any]) -> None:
    del run["rounds"][0]["outputs"][NODE]


def _unplanned_round(run: dict[str, Any]) -> None:
    run["rounds"].append({"job": "train", "round": 3, "outputs": {NODE: "00" * 32}})


def _round_dropped(run: dict[str, Any]) -> None:
    run["rounds"].pop()


def _foreign_output(run: dict[str, Any]) -> None:
    run["rounds"][0]["outputs"]["hospital-9"] = "00" * 32


def _other_study(run: dict[str, Any]) -> None:
    run["study_id"] = "study-other"


def _other_release(run: dict[str, Any]) -> None:
    run["releases"]["component"] = "00" * 32


def _no_release(run: dict[str, Any]) -> None:
    run["releases"] = {}


def _revoked(run: dict[str, Any]) -> None:
    run["state"] = "revoked"


def _node_denied(run: dict[str, Any]) -> None:
    del run["nodes"][NODE]


@pytest.mark.parametrize(
    "change",
    [
        _other_output, _forgotten_output, _unplanned_round, _round_dropped, _foreign_output, _other_study,
        _other_release, _no_release, _revoked, _node_denied,
    ],
)  # fmt: skip
def test_a_coordinator_that_tells_another_story_of_the_run_is_caught(
    change: RunChange, bundle: Path, played: Rehearsal
) -> None:
    run = json.loads((bundle / "run.json").read_bytes())
    change(run)
    (bundle / "run.json").write_text(json.dumps(run))
    error = failure(resealed(bundle, played), played)
    assert "run.json" in error.message or FILE in error.message or "release/" in error.message


def parts_with(played: Rehearsal, tmp_path: Path, **changes: Any) -> Path:
    return played.bundle(tmp_path / "again", replace(played.parts(), **changes))


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("permit.jwt", lambda p: {"permit": p.coordinator.sign(p.permit.claims(), typ="vht-permit+jwt")}),
        ("study.jws", lambda p: {"study": p.coordinator.sign(p.request.claims(), typ="vht-study+jwt")}),
        ("study.jws", lambda p: {"user_key": p.coordinator.public}),
        ("status/end.jwt", lambda p: {"statuses": {"end": p.permit.permit_id}}),
        ("status", lambda _: {"statuses": {}}),
        ("receipts/hospital-1.json", lambda _: {"receipts": {"hospital-1": ["a.b.c"]}}),
        ("receipts/hospital-1.json", lambda p: {"receipts": {"hospital-1": p.receipts[NODE]}}),
        ("receipts/hospital-9.json", lambda p: {"receipts": {"hospital-9": p.receipts[NODE]}}),
    ],
)
def test_papers_that_their_owner_did_not_sign_are_named(
    file: str, changes: Callable[[Rehearsal], dict[str, Any]], played: Rehearsal, tmp_path: Path
) -> None:
    changed_bundle = parts_with(played, tmp_path, **changes(played))
    assert file in failure(changed_bundle, played).message


def test_a_component_changed_after_the_nodes_acknowledged_it_is_caught(bundle: Path, played: Rehearsal) -> None:
    package = bundle / "release/cardio-risk"
    manifest = json.loads((package / "manifest.json").read_bytes())
    card = package / "model_card.md"
    card.write_text(card.read_text() + "\nApproved as a medical device.\n")
    facts = {name: value for name, value in manifest.items() if name not in ("schema_version", "files")}
    (package / "manifest.json").unlink()
    (package / "manifest.jws").unlink()
    sealed = seal(package, facts, played.coordinator, typ=component.TYP, allowed=component.ALLOWED)
    run = json.loads((bundle / "run.json").read_bytes())
    run["releases"]["component"] = sealed.sha256
    (bundle / "run.json").write_text(json.dumps(run))
    error = failure(resealed(bundle, played), played)
    assert error.code == "VHT-VERIFY-RELEASE"
    assert "does not acknowledge" in error.message


def test_a_run_that_says_something_twice_is_refused_though_the_coordinator_signs_it(
    bundle: Path, played: Rehearsal
) -> None:
    """A page that takes the first of two names shows another end than the verifier, which takes the last."""
    text = (bundle / "run.json").read_text()
    assert text.startswith('{\n  "study_id"')
    (bundle / "run.json").write_text(text.replace("{", '{\n  "state": "failed",', 1))
    assert json.loads((bundle / "run.json").read_text())["state"] == "completed"
    assert "run.json" in failure(resealed(bundle, played), played).message


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_receipts_that_are_not_in_the_bundle_are_noted(kept: int, bundle: Path, played: Rehearsal) -> None:
    path = bundle / "receipts" / f"{NODE}.json"
    tokens = json.loads(path.read_bytes())
    assert len(tokens) == 3  # component, cohort, the visit's end
    path.write_bytes(canonical_bytes(tokens[:kept]))
    if not kept:
        path.unlink()
    (note,) = verify_bundle(resealed(bundle, played), played.trust).notes
    assert note.startswith(f"receipts/{NODE}.json: without a receipt of ")
    assert note.count("release.acknowledged") == max(0, 2 - kept)
    assert "visit.closed" in note
