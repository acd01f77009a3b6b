"""A release follows from what the nodes released, or it is refused, whoever signed and acknowledged it."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from kit.tampered_bundles import NODE, failure, resealed
from safetensors.numpy import load, save

from synth.marginal_sums import sum_tables, total_of
from synth.marginals import Table
from vht_federate.domain.figures import figures_of_manifest
from vht_federate.evidence.verify import verify_bundle
from vht_federate.framing import Reply
from vht_federate.packaging.evaluation import ADDED
from vht_federate.signing.canonical import canonical_bytes
from vht_federate.testing.outputs import MadeUpOutputs
from vht_federate.testing.rehearsal import Rehearsal


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    with Rehearsal(tmp_path_factory.mktemp("rehearsal")) as rehearsal:
        rehearsal.play().bundle(rehearsal.root / "bundle")
        yield rehearsal


@pytest.fixture
def bundle(played: Rehearsal, tmp_path: Path) -> Path:
    return Path(shutil.copytree(played.root / "bundle", tmp_path / "bundle"))


OUTPUT = f"outputs/train-2/{NODE}"


def _other_result(bundle: Path) -> str:
    result = json.loads((bundle / f"{OUTPUT}.json").read_bytes())
    (bundle / f"{OUTPUT}.json").write_bytes(canonical_bytes({**result, "patients_noised": 1.0}))
    return f"{OUTPUT}.json"


def _other_tensors(bundle: Path) -> str:
    (bundle / f"{OUTPUT}.safetensors").write_bytes((bundle / "outputs/train-1/hospital-1.safetensors").read_bytes())
    return OUTPUT


def _no_tensors(bundle: Path) -> str:
    (bundle / f"{OUTPUT}.safetensors").unlink()
    return OUTPUT


def _no_result(bundle: Path) -> str:
    (bundle / f"{OUTPUT}.json").unlink()
    return f"{OUTPUT}.json"


def _one_more(bundle: Path) -> str:
    (bundle / "outputs/train-2/hospital-9.json").write_text("{}")
    return "outputs/train-2/hospital-9.json"


@pytest.mark.parametrize("spoil", [_other_result, _other_tensors, _no_tensors, _no_result, _one_more])
def test_an_output_that_the_coordinator_changed_is_named(
    spoil: Callable[[Path], str], bundle: Path, played: Rehearsal
) -> None:
    named = spoil(bundle)
    error = failure(resealed(bundle, played), played)
    assert error.code == "VHT-VERIFY-OUTPUT"
    assert named in error.message


def _other_weights(rehearsal: Rehearsal) -> str:
    weights = {name: value + np.float32(1e-6) for name, value in load(rehearsal.outputs.weights).items()}
    rehearsal.outputs.weights = save(weights)
    return "release/cardio-risk/weights.safetensors"


def _other_names(rehearsal: Rehearsal) -> str:
    rehearsal.outputs.weights = save({"other": np.zeros(3, dtype=np.float32)})
    return "does not fit release/cardio-risk/weights.safetensors"


def _other_counts(rehearsal: Rehearsal) -> str:
    rehearsal.run["patients_noised"] = {**rehearsal.run["patients_noised"], NODE: 1e6}
    return "run.json: names other noised counts"


def _better_figures(rehearsal: Rehearsal) -> str:
    rehearsal.run["evaluation"] = {
        **rehearsal.run["evaluation"],
        "pooled": {**rehearsal.run["evaluation"]["pooled"], "auc": 0.99},
    }
    return "run.json: names other figures"


def _better_card(rehearsal: Rehearsal) -> str:
    figures = rehearsal.outputs.evaluation()
    figures["pooled"]["auc"] = 0.99
    rehearsal.outputs.evaluation = lambda: figures  # type: ignore[method-assign]
    return "release/cardio-risk/manifest.json: names other figures"


def _narrower_interval(rehearsal: Rehearsal) -> str:
    figures = rehearsal.outputs.evaluation()
    figures["intervals"]["pooled"]["auc"] = [0.97, 1.0]
    rehearsal.outputs.evaluation = lambda: figures  # type: ignore[method-assign]
    return "release/cardio-risk/manifest.json: names other intervals"


def _narrower_interval_of_the_run(rehearsal: Rehearsal) -> str:
    intervals = copy.deepcopy(rehearsal.run["evaluation"]["intervals"])
    intervals["mean"]["accuracy"] = [0.97, 1.0]
    rehearsal.run["evaluation"] = {**rehearsal.run["evaluation"], "intervals": intervals}
    return "run.json: names other figures"


def _other_threshold(rehearsal: Rehearsal) -> str:
    rehearsal.run["evaluation"] = {**rehearsal.run["evaluation"], "threshold": 0.1}
    return "run.json: names other figures"


def _other_sums(rehearsal: Rehearsal) -> str:
    sums = {name: table + 1.0 for name, table in load(rehearsal.outputs.tables()).items()}
    rehearsal.outputs.tables = lambda: save(sums)  # type: ignore[method-assign]
    return "cohort/marginals.safetensors"


def _other_tables(rehearsal: Rehearsal) -> str:
    rehearsal.outputs.table_digests = dict  # type: ignore[method-assign]
    return "cohort/manifest.json"


def _other_engine(rehearsal: Rehearsal) -> str:
    reply = rehearsal.outputs.replies["train", 1][NODE]
    other = Reply({**reply.result, "engine": "torch.func"}, reply.tensors)
    outputs, release = rehearsal.outputs, rehearsal.release

    def claiming() -> None:  # the statement is made while the node seems to have said something else
        outputs.replies["train", 1][NODE] = other
        release()
        outputs.replies["train", 1][NODE] = reply

    rehearsal.release = claiming  # type: ignore[method-assign]
    return f"release/cardio-risk/privacy_statement.json: claims nodes.{NODE}.gradients.engine"


@pytest.mark.parametrize(
    "spoil",
    [
        _other_weights,
        _other_names,
        _other_counts,
        _better_figures,
        _better_card,
        _narrower_interval,
        _narrower_interval_of_the_run,
        _other_threshold,
        _other_engine,
        _other_sums,
        _other_tables,
    ],
)
def test_a_release_that_does_not_follow_from_the_outputs_is_refused_though_every_node_acknowledged_it(
    spoil: Callable[[Rehearsal], str], tmp_path: Path
) -> None:
    with Rehearsal(tmp_path, names=("hospital-1", NODE)) as rehearsal:
        rehearsal.status("start")
        rehearsal.negotiate()
        for job, number in rehearsal.plan.calls():
            rehearsal.round(job, number, rehearsal.names)
        words = spoil(rehearsal)
        rehearsal.release()
        rehearsal.close()
        rehearsal.status("end")
        error = failure(rehearsal.bundle(tmp_path / "bundle"), rehearsal)
    assert error.code == ("VHT-VERIFY-RELEASE" if spoil is _other_engine else "VHT-VERIFY-OUTPUT")
    assert words in error.message


def test_a_bundle_of_an_earlier_version_holds_without_intervals(tmp_path: Path) -> None:
    with Rehearsal(tmp_path, names=("hospital-1", NODE)) as rehearsal:
        rehearsal.status("start")
        rehearsal.negotiate()
        for job, number in rehearsal.plan.calls():
            rehearsal.round(job, number, rehearsal.names)
        figures = rehearsal.outputs.evaluation()
        rehearsal.run["evaluation"] = {name: figures[name] for name in figures if name not in ADDED}
        rehearsal.outputs.evaluation = lambda: {**figures, "intervals": {"pooled": None}}  # type: ignore[method-assign]
        rehearsal.release()
        rehearsal.close()
        rehearsal.status("end")
        bundle = rehearsal.bundle(tmp_path / "bundle")
        verify_bundle(bundle, rehearsal.trust)
    manifest = json.loads((bundle / "release" / "cardio-risk" / "manifest.json").read_bytes())
    assert "evaluation_intervals" not in manifest
    assert figures_of_manifest(manifest)["auc"].text == "says nothing (no interval was released)"


def test_nodes_that_were_asked_with_other_weights_than_the_mean_are_named(tmp_path: Path) -> None:
    with Rehearsal(tmp_path, names=("hospital-1", NODE)) as rehearsal:
        rehearsal.status("start")
        rehearsal.negotiate()
        rehearsal.round("train", 1, rehearsal.names)
        mean = rehearsal.outputs.weights
        rehearsal.outputs.weights = save({"weight": np.ones(3, dtype=np.float32)})
        for call in [call for call in rehearsal.plan.calls() if call != ("train", 1)]:
            rehearsal.round(*call, rehearsal.names)
        assert rehearsal.outputs.weights != mean
        rehearsal.release()
        rehearsal.close()
        rehearsal.status("end")
        error = failure(rehearsal.bundle(tmp_path / "bundle"), rehearsal)
    assert "nodes/hospital-1.json entry" in error.message
    assert "other weights than the mean" in error.message


def as_the_maker_sums(outputs: MadeUpOutputs) -> bytes:
    """The cohort's tables as the cohort maker makes them."""
    replies = [
        {name: reply.tensors for name, reply in outputs.replies["marginals", number].items()} for number in (1, 2)
    ]
    age, male = tuple(range(11)), tuple(range(2))
    one_way = sum_tables([Table("one-way/age", (0,), (age,)), Table("one-way/male", (1,), (male,))], replies[0], 14.0)
    (pair,) = sum_tables([Table("pair/age|male", (0, 1), (age, male))], replies[1], 14.0)
    scale = total_of(one_way) / total_of([pair]) if replies[0].keys() != replies[1].keys() else 1.0
    return save({marginal.table.name: marginal.counts for marginal in one_way} | {pair.table.name: pair.counts * scale})


@pytest.mark.parametrize("lost", [{}, {NODE: ("marginals", 2)}])
def test_the_cohort_makers_sums_hold_also_where_a_node_gave_half_its_tables(
    lost: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    with Rehearsal(tmp_path) as rehearsal:
        rehearsal.outputs.tables = lambda: as_the_maker_sums(rehearsal.outputs)  # type: ignore[method-assign]
        verify_bundle(rehearsal.play(lost=lost).bundle(tmp_path / "bundle"), rehearsal.trust)


def test_a_node_whose_update_is_none_and_that_was_given_up_is_not_in_the_mean(tmp_path: Path) -> None:
    with Rehearsal(tmp_path) as rehearsal:
        rehearsal.status("start")
        rehearsal.negotiate()
        rehearsal.round("train", 1, rehearsal.names)
        rehearsal.outputs.spoilt.add((NODE, "train", 2))
        rehearsal.round("train", 2, rehearsal.names)
        rehearsal.run["nodes"][NODE]["lost"] = "its update cannot be used"
        for call in rehearsal.plan.calls()[2:]:
            rehearsal.round(*call, rehearsal.present())
        rehearsal.release()
        rehearsal.close()
        rehearsal.status("end")
        assert NODE not in verify_bundle(rehearsal.bundle(tmp_path / "bundle"), rehearsal.trust).run.present()
