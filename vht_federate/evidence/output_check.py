"""The nodes' outputs against the release: averaged, added up and evaluated again.

Outputs carry their noise, so they may be shown. With them anybody can redo what the coordinator did: the weights of
every round, the weights that were released, the figures of the evaluation and the tables behind the cohort.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vht_federate import framing
from vht_federate.domain.plan import StudyPlan
from vht_federate.errors import InputError, VerificationError, VhtError
from vht_federate.evidence.finding import TOLERANCE, broken
from vht_federate.evidence.run_check import Call, RunClaims
from vht_federate.evidence.visit_record import VisitRecord
from vht_federate.framing import Reply
from vht_federate.packaging.evaluation import ADDED, summarise
from vht_federate.secagg.aggregate import Weights, next_weights, read_weights
from vht_federate.signing.canonical import canonical_bytes, sha256_hex
from vht_federate.signing.signed_manifest import Sealed
from vht_federate.signing.strict_json import read_json
from vht_federate.tensors import read_tensors

__all__ = ["Outputs", "check_derived", "cohort_tables", "output_name", "read_outputs"]

Outputs = Mapping[Call, Mapping[str, Reply]]
Tables = dict[str, NDArray[np.float64]]


def output_name(job: str, number: int, node: str) -> str:
    """Of an output in a bundle, without its ending."""
    return f"outputs/{job}-{number}/{node}"


def read_outputs(folder: Path, run: RunClaims) -> Outputs:
    """Every output that ``run`` names, under the digest that it names, and no other.

    Raises VerificationError VHT-VERIFY-OUTPUT naming the file.
    """
    outputs: dict[Call, dict[str, Reply]] = {}
    files: set[str] = set()
    for round_ in run.rounds:
        outputs[round_.job, round_.round] = {
            name: _read(folder, output_name(round_.job, round_.round, name), digest, files)
            for name, digest in sorted(round_.outputs.items())
        }
    for path in sorted((folder / "outputs").rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in files:
            raise broken(name, "is no output that run.json names", "OUTPUT")
    return outputs


def _read(folder: Path, name: str, digest: str, files: set[str]) -> Reply:
    tensors = folder / f"{name}.safetensors"
    files |= {f"{name}.json", f"{name}.safetensors"}
    try:
        content = (folder / f"{name}.json").read_bytes()
        result = read_json(content)
        spelt = canonical_bytes(result)
    except (OSError, ValueError, RecursionError, InputError) as error:
        raise broken(f"{name}.json", "is missing or not JSON", "OUTPUT") from error
    if not isinstance(result, dict) or spelt != content:
        raise broken(f"{name}.json", "is not canonical JSON (RFC 8785) of a result", "OUTPUT")
    reply = Reply(result, tensors.read_bytes() if tensors.exists() else b"")
    if reply.sha256() != digest:
        raise broken(f"{name}.json", "is with its tensors not what left the node: another digest is logged", "OUTPUT")
    return reply


def check_derived(
    folder: Path,
    plan: StudyPlan,
    run: RunClaims,
    records: Mapping[str, VisitRecord],
    outputs: Outputs,
    releases: Mapping[str, Sealed],
) -> list[tuple[str, str]]:
    """Do again what the coordinator did. (file, what holds) of each thing that came out the same.

    Raises VerificationError VHT-VERIFY-OUTPUT naming the file that does not follow from the outputs.
    """
    checks = []
    component = releases.get("component")
    if component is not None:
        where = component.folder.relative_to(folder).as_posix()
        _Training(f"{where}/weights.safetensors", plan, run, records, outputs).check(component.folder)
        checks.append((f"{where}/weights.safetensors", "the mean of the nodes' last outputs, bit for bit"))
    if run.evaluation is not None or run.completed:
        _check_evaluation(plan, run, outputs, component)
        checks.append(("run.json", "its figures follow from the outputs"))
    cohort = releases.get("cohort")
    if cohort is not None:
        _check_cohort(cohort, outputs)
        checks.append(("cohort/marginals.safetensors", "the sums of the nodes' noisy tables"))
    return checks


@dataclass
class _Training:
    """The training done again, from outputs."""

    file: str
    plan: StudyPlan
    run: RunClaims
    records: Mapping[str, VisitRecord]
    outputs: Outputs

    def check(self, package: Path) -> None:
        released = _tensors(package / "weights.safetensors", self.file)
        counts: dict[str, float] = {}
        weights, last = b"", self.plan.training.rounds
        for number in range(1, last + 1):
            if number > 1:
                self._check_asked(("train", number), weights)
            weights = self._mean(number, released, counts)
        if not _same_arrays(read_tensors(weights, _not_readable(self.file)), released):
            raise broken(self.file, "is not the weighted mean of the nodes' last outputs", "OUTPUT")
        if counts != self.run.patients_noised:
            raise broken("run.json", "names other noised counts of patients than the outputs", "OUTPUT")
        self._check_asked(("evaluate", 1), weights)

    def _mean(self, number: int, like: Weights, counts: dict[str, float]) -> bytes:
        """The weights after one round; a node whose update fits no such component must have been given up."""
        usable = {}
        for name, reply in self.outputs.get(("train", number), {}).items():
            try:
                update = read_weights(reply.tensors, like)
                counts[name] = float(reply.result["patients_noised"])
            except (VhtError, KeyError, TypeError, ValueError) as error:
                if self.run.nodes[name].lost is None:
                    place = f"{output_name('train', number, name)}.safetensors"
                    raise broken(place, f"does not fit {self.file}", "OUTPUT") from error
                continue
            usable[name] = update
        try:
            return next_weights(self.plan.trust_model, usable, counts)
        except VhtError as error:
            raise broken(
                self.file, f"cannot be made of the outputs of train {number}: {error.message}", "OUTPUT"
            ) from error

    def _check_asked(self, call: Call, weights: bytes) -> None:
        """Every node was asked with exactly these weights."""
        for record in self.records.values():
            if call not in record.begun:
                continue
            entry, begun = record.begun[call]
            if begun.request_sha256 != framing.Call(record.visit, *call, tensors=weights).sha256():
                raise record.error(entry, "was asked with other weights than the mean of the round before", "OUTPUT")


INTERVALS = ("evaluation_intervals", "evaluation_threshold")  # of a component's manifest


def _check_evaluation(plan: StudyPlan, run: RunClaims, outputs: Outputs, component: Sealed | None) -> None:
    tables = {name: reply.result for name, reply in outputs.get(("evaluate", 1), {}).items()}
    figures = summarise(tables, plan.evaluation.noise_multiplier if plan.evaluation else 1.0)
    intervals = {"evaluation_intervals": figures["intervals"]["pooled"], "evaluation_threshold": figures["threshold"]}
    if run.evaluation is not None and not set(ADDED) & run.evaluation.keys():  # as earlier versions wrote it
        figures, intervals = {name: figures[name] for name in figures if name not in ADDED}, {}
    if not _close(run.evaluation, figures if plan.evaluation else None):
        raise broken("run.json", "names other figures of the evaluation than the outputs give", "OUTPUT")
    if component is not None and not _close(component.manifest.get("evaluation"), figures["pooled"] or None):
        where = f"release/{component.folder.name}/manifest.json"
        raise broken(where, "names other figures of the evaluation than the outputs give", "OUTPUT")
    if component is not None and figures["pooled"]:
        stated = {name: component.manifest[name] for name in INTERVALS if name in component.manifest}
        if not _close(stated, intervals):
            where = f"release/{component.folder.name}/manifest.json"
            raise broken(where, "names other intervals of the evaluation than the outputs give", "OUTPUT")


def _check_cohort(cohort: Sealed, outputs: Outputs) -> None:
    """The cohort's tables are the sums of the outputs."""
    file, rounds = "cohort/marginals.safetensors", [outputs.get(("marginals", number), {}) for number in (1, 2)]
    digests = {
        str(number): {name: sha256_hex(reply.tensors) for name, reply in replies.items()}
        for number, replies in enumerate(rounds, 1)
    }
    if cohort.manifest.get("tables_sha256") != digests:
        raise broken("cohort/manifest.json", "names other tables than the outputs", "OUTPUT")
    released = _tensors(cohort.folder / "marginals.safetensors", file)
    try:
        expected = cohort_tables(*rounds)
        same = released.keys() == expected.keys() and all(
            released[name].shape == table.shape and np.allclose(released[name], table, rtol=1e-9, atol=TOLERANCE)
            for name, table in expected.items()
        )
    except (ValueError, ZeroDivisionError) as error:
        raise broken(file, "or an output that it is made of cannot be read", "OUTPUT") from error
    if not same:
        raise broken(file, "holds other sums than the outputs give", "OUTPUT")


def cohort_tables(one_way: Mapping[str, Reply], two_way: Mapping[str, Reply]) -> Tables:
    """Sums over the nodes' answers to rounds 1 and 2; pairs that fewer nodes gave are scaled to the one-way total."""
    one_way_sums, pair_sums = _sums(one_way, "one-way/"), _sums(two_way, "pair/")
    scale = _total(one_way_sums) / _total(pair_sums) if one_way.keys() != two_way.keys() else 1.0
    return one_way_sums | {name: table * scale for name, table in pair_sums.items()}


def _sums(replies: Mapping[str, Reply], prefix: str) -> Tables:
    sums: Tables = {}
    for node, reply in sorted(replies.items()):
        for name, table in read_tensors(reply.tensors, _not_readable(f"an output of {node}")).items():
            if name.startswith(prefix):
                sums[name] = sums.get(name, np.zeros(table.shape)) + table.astype(np.float64)
    return sums


def _total(tables: Tables) -> float:
    """Patients, by inverse variance: the noise of a table's sum grows with its number of cells."""
    shares = np.array([1.0 / table.size for table in tables.values()])
    return max(1.0, float((shares * [table.sum() for table in tables.values()]).sum() / shares.sum()))


def _tensors(path: Path, name: str) -> dict[str, NDArray[Any]]:
    try:
        return read_tensors(path.read_bytes(), _not_readable(name))
    except OSError as error:
        raise _not_readable(name) from error


def _not_readable(name: str) -> VerificationError:
    return broken(name, "is not safetensors", "OUTPUT")


def _same_arrays(first: Mapping[str, NDArray[Any]], second: Mapping[str, NDArray[Any]]) -> bool:
    return first.keys() == second.keys() and all(
        (first[name].dtype, first[name].shape, first[name].tobytes())
        == (second[name].dtype, second[name].shape, second[name].tobytes())
        for name in first
    )


def _close(claimed: Any, computed: Any) -> bool:
    """Equal, but for the last digit of rounded figures."""
    if isinstance(claimed, Mapping) and isinstance(computed, Mapping):
        return claimed.keys() == computed.keys() and all(_close(claimed[name], computed[name]) for name in claimed)
    if isinstance(claimed, list) and isinstance(computed, list):
        return len(claimed) == len(computed) and all(map(_close, claimed, computed))
    if isinstance(claimed, float | int) and isinstance(computed, float | int):
        return abs(claimed - computed) <= 2 * TOLERANCE
    return bool(claimed == computed)
